//! Which parameters are trained: groups by name, as upstream's `freeze` option has them.

use std::str::FromStr;

use crate::Error;

/// Parts of names that upstream keeps as buffers: tables, which no recipe trains.
const BUFFERS: &[&str] =
    &["rope.freqs", "y_embedder.y_embedding", "pos_embed", "pos_embed_temporal"];

/// What is left as it is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Freeze {
    /// Everything is trained.
    #[default]
    Nothing,
    /// Everything but attention over time: upstream's `not_temporal`.
    NotTemporal,
    /// Attention to the caption: upstream's `text`.
    Text,
    /// Everything but parameters whose name contains one of these.
    Except(Vec<String>),
}

impl Freeze {
    /// Whether the parameter with this checkpoint name is trained.
    pub fn trains(&self, name: &str) -> bool {
        if BUFFERS.contains(&name) {
            return false;
        }
        match self {
            Freeze::Nothing => true,
            Freeze::NotTemporal => name.contains("attn_temp"),
            Freeze::Text => !name.contains("cross_attn"),
            Freeze::Except(parts) => parts.iter().any(|part| name.contains(part.as_str())),
        }
    }
}

impl FromStr for Freeze {
    type Err = Error;

    /// `none`, `not_temporal`, `text`, or `except:part,part`.
    fn from_str(text: &str) -> Result<Freeze, Error> {
        match text {
            "none" => Ok(Freeze::Nothing),
            "not_temporal" => Ok(Freeze::NotTemporal),
            "text" => Ok(Freeze::Text),
            _ => match text.strip_prefix("except:") {
                Some(parts) if parts.split(',').all(|part| !part.trim().is_empty()) => {
                    Ok(Freeze::Except(parts.split(',').map(|part| part.trim().into()).collect()))
                }
                _ => Err(Error::option(
                    "freeze",
                    format!(
                        "`{text}`, expected none, not_temporal, text or except:PART,.. with parts \
                         of names"
                    ),
                )),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_upstreams() {
        let names = [
            "blocks.0.attn.qkv.weight",
            "blocks.0.attn_temp.qkv.weight",
            "blocks.0.cross_attn.proj.bias",
            "final_layer.linear.weight",
            "rope.freqs",
            "y_embedder.y_embedding",
        ];
        for (text, trained) in [
            ("none", [true, true, true, true, false, false]),
            ("not_temporal", [false, true, false, false, false, false]),
            ("text", [true, true, false, true, false, false]),
            ("except:final_layer, rope", [false, false, false, true, false, false]),
        ] {
            let freeze: Freeze = text.parse().unwrap();
            assert_eq!(names.map(|name| freeze.trains(name)), trained, "{text}");
        }
        for wrong in ["temporal", "except:", "except:a,,b", ""] {
            let error = wrong.parse::<Freeze>().unwrap_err().to_string();
            assert!(error.contains("expected none, not_temporal"), "{error}");
        }
    }
}
