//! Fitting a checkpoint to a model's parameters: upstream's names, old and new, and the few shapes it adapts.
//!
//! [`fit`] is strict: every parameter needs a tensor of its shape, and every tensor must be used or be of a kind
//! that upstream drops. All that does not fit is reported at once, as one [`Misfit`].
//!
//! Adapted (upstream's loaders do the same):
//! - a leading `module.` is ignored (weights saved from a parallel wrapper);
//! - VAE attention: `query`, `key`, `value`, `proj_attn` stand for `to_q`, `to_k`, `to_v`, `to_out.0`; a weight stored
//!   as a 1x1 convolution `[C, C, 1, 1]` for `[C, C]`;
//! - `y_embedder.y_embedding` of another length: shorter ones repeat their last row, longer ones are cut;
//! - a 2-D patch embedding `[h, c, p, p]` for `[h, c, 1, p, p]` (image models as a start);
//! - `PixArt`'s `blocks.` for `STDiT-3`'s `spatial_blocks.`;
//! - T5: `encoder.embed_tokens.weight` for `shared.weight`.
//!
//! Dropped: position embeddings (recomputed for each size), and a T5's `decoder.*`, `lm_head.*`.

use std::borrow::{Borrow, Cow};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::{Checkpoint, Error, TensorView};

/// A model's parameter: name and shape.
pub type Parameter = (String, Vec<usize>);

/// What a fit may leave open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leniency {
    /// Leave whole new parts of the model without tensors, for the caller to initialize: a training start from a
    /// model without temporal attention, size embedders or QK norm.
    pub start: bool,
    /// Pass over tensors that no parameter uses: for a graph of only a part of the model, such as a VAE's decoder.
    pub subset: bool,
}

/// How a tensor differs from the parameter it was fitted to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Stored under another name.
    Renamed {
        /// The stored name.
        from: String,
    },
    /// Axes of length 1 added or removed.
    Reshaped {
        /// The stored shape.
        from: Vec<usize>,
    },
    /// Rows cut, or the last one repeated.
    Resized {
        /// The stored number of rows.
        from: usize,
    },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Renamed { from } => write!(f, "stored as {from}"),
            Change::Reshaped { from } => write!(f, "stored with shape {from:?}"),
            Change::Resized { from } => write!(f, "stored with {from} rows"),
        }
    }
}

/// A checkpoint (borrowed or shared) whose tensors go by a model's parameter names and shapes.
#[derive(Debug)]
pub struct Fitted<C> {
    checkpoint: C,
    sources: BTreeMap<String, Source>,
    /// What was adapted, by parameter.
    pub changes: Vec<(String, Change)>,
    /// Parameters without a tensor, which the caller must initialize; empty unless [`Leniency::start`].
    pub initializable: Vec<String>,
    /// Stored tensors that nothing uses.
    pub dropped: Vec<String>,
}

#[derive(Debug)]
struct Source {
    stored: String,
    shape: Vec<usize>,
}

impl<C: Borrow<Checkpoint>> Fitted<C> {
    /// Names of the parameters that have a tensor, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.sources.keys().map(String::as_str)
    }

    /// A parameter's value, in the parameter's shape; borrowed where the file has it so.
    ///
    /// # Errors
    /// [`Error::NoSuchTensor`] for names that are no parameter, or are to be initialized.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, Error> {
        let source = self.sources.get(name);
        let source = source.ok_or_else(|| Error::NoSuchTensor { name: name.into() })?;
        let mut view = self.checkpoint.borrow().tensor(&source.stored)?;
        let wanted = source.shape.iter().product::<usize>() * view.dtype.size();
        if wanted < view.bytes.len() {
            view.bytes = match view.bytes {
                Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[..wanted]),
                Cow::Owned(mut bytes) => {
                    bytes.truncate(wanted);
                    Cow::Owned(bytes)
                }
            };
        } else if wanted > view.bytes.len() {
            let rows = view.bytes.into_owned();
            let n_row_bytes = wanted / source.shape[0];
            let last = rows[rows.len() - n_row_bytes..].to_vec();
            let missing = (wanted - rows.len()) / n_row_bytes;
            view.bytes = Cow::Owned([rows, last.repeat(missing)].concat());
        }
        view.shape.clone_from(&source.shape);
        Ok(view)
    }

    /// [`Checkpoint::release`] for a parameter.
    pub fn release(&self, name: &str) {
        if let Some(source) = self.sources.get(name) {
            self.checkpoint.borrow().release(&source.stored);
        }
    }

    /// [`Checkpoint::prefetch`] for a parameter.
    pub fn prefetch(&self, name: &str) {
        if let Some(source) = self.sources.get(name) {
            self.checkpoint.borrow().prefetch(&source.stored);
        }
    }
}

/// A tensor of another shape than its parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misshapen {
    /// The parameter.
    pub name: String,
    /// Its shape.
    pub expected: Vec<usize>,
    /// The stored tensor's shape.
    pub found: Vec<usize>,
}

/// Everything that keeps a checkpoint from fitting a model; each list is in order of name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Misfit {
    /// Where the checkpoint came from, for the message.
    pub origin: String,
    /// Parameters without a tensor.
    pub missing: Vec<Parameter>,
    /// Tensors without a parameter.
    pub unexpected: Vec<Parameter>,
    /// Tensors of another shape.
    pub misshapen: Vec<Misshapen>,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Misfit { origin, missing, unexpected, misshapen } = self;
        write!(
            f,
            "{origin} does not fit the model: {} missing, {} unexpected, {} misshapen",
            missing.len(),
            unexpected.len(),
            misshapen.len()
        )?;
        for (name, shape) in missing {
            write!(f, "\n  missing     {name} {shape:?}")?;
        }
        for (name, shape) in unexpected {
            write!(f, "\n  unexpected  {name} {shape:?}")?;
        }
        for Misshapen { name, expected, found } in misshapen {
            write!(f, "\n  misshapen   {name}: expected {expected:?}, found {found:?}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Misfit {}

/// Matches every parameter with a tensor and every tensor with a parameter.
///
/// # Errors
/// The list of all that is missing, unexpected or of the wrong shape.
pub fn fit<C: Borrow<Checkpoint>>(
    checkpoint: C,
    expected: &[Parameter],
) -> Result<Fitted<C>, Misfit> {
    fit_with(checkpoint, expected, Leniency::default())
}

/// As [`fit`], leaving open what `leniency` says.
///
/// # Errors
/// The list of all that is missing, unexpected or of the wrong shape, beyond what is left open.
pub fn fit_with<C: Borrow<Checkpoint>>(
    checkpoint: C,
    expected: &[Parameter],
    leniency: Leniency,
) -> Result<Fitted<C>, Misfit> {
    let Fitted { sources, changes, initializable, dropped, .. } =
        match_tensors(checkpoint.borrow(), expected, leniency)?;
    Ok(Fitted { checkpoint, sources, changes, initializable, dropped })
}

fn match_tensors(
    checkpoint: &Checkpoint,
    expected: &[Parameter],
    leniency: Leniency,
) -> Result<Fitted<()>, Misfit> {
    let stored = stored_names(checkpoint);
    let is_t5 = expected.iter().any(|(name, _)| name == T5_EMBEDDING);
    let mut fitted = Fitted {
        checkpoint: (),
        sources: BTreeMap::new(),
        changes: Vec::new(),
        initializable: Vec::new(),
        dropped: Vec::new(),
    };
    let mut misfit = Misfit::default();
    let mut used = BTreeSet::new();
    for (name, shape) in expected {
        let Some(source) = find_stored(&stored, name) else {
            if leniency.start && is_new_part(&stored, name) {
                fitted.initializable.push(name.clone());
            } else {
                misfit.missing.push((name.clone(), shape.clone()));
            }
            continue;
        };
        used.insert(source);
        let found = checkpoint.info(source).map_or(&[][..], |info| info.shape);
        match reconcile(name, shape, found) {
            Some(change) => {
                if strip_module(source) != name {
                    let from = source.to_string();
                    fitted.changes.push((name.clone(), Change::Renamed { from }));
                }
                fitted.changes.extend(change.map(|change| (name.clone(), change)));
                let source = Source { stored: source.to_string(), shape: shape.clone() };
                fitted.sources.insert(name.clone(), source);
            }
            None => misfit.misshapen.push(Misshapen {
                name: name.clone(),
                expected: shape.clone(),
                found: found.to_vec(),
            }),
        }
    }
    for info in checkpoint.tensors().filter(|info| !used.contains(info.name)) {
        if leniency.subset || is_dropped(strip_module(info.name), is_t5) {
            fitted.dropped.push(info.name.to_string());
        } else {
            misfit.unexpected.push((info.name.to_string(), info.shape.to_vec()));
        }
    }
    if misfit.missing.is_empty() && misfit.unexpected.is_empty() && misfit.misshapen.is_empty() {
        return Ok(fitted);
    }
    misfit.missing.sort_unstable();
    misfit.misshapen.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let path = checkpoint.path();
    misfit.origin = path.map_or("the checkpoint".into(), |path| path.display().to_string());
    Err(misfit)
}

const T5_EMBEDDING: &str = "shared.weight";
const T5_EMBEDDING_ALIAS: &str = "encoder.embed_tokens.weight";

/// Attention projections of diffusers' VAEs: today's name, the name before.
const OLD_ATTENTION: [(&str, &str); 4] =
    [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")];

/// Tensors that are computed, not learned; upstream deletes them when it loads.
const RECOMPUTED: [&str; 6] = [
    "pos_embed",
    "pos_embed_temporal",
    "pos_embed_spatial",
    "temp_embed",
    "rope.freqs",
    "pos_embed.inv_freq",
];

/// Parts that later models have and earlier ones lack, as substrings of parameter names with a leading dot.
const NEW_PARTS: [&str; 11] = [
    ".attn_temp.",
    ".t_block_temp.",
    ".scale_shift_table_temporal",
    ".csize_embedder.",
    ".ar_embedder.",
    ".fl_embedder.",
    ".fps_embedder.",
    ".q_norm.",
    ".k_norm.",
    ".rope.freqs",
    ".temporal_blocks.",
];

fn strip_module(name: &str) -> &str {
    let mut name = name;
    while let Some(rest) = name.strip_prefix("module.") {
        name = rest;
    }
    name
}

/// Names without wrapper prefixes, to names as stored. Where both exist, the one without prefix counts.
fn stored_names(checkpoint: &Checkpoint) -> BTreeMap<&str, &str> {
    let mut stored = BTreeMap::new();
    for info in checkpoint.tensors() {
        let stripped = strip_module(info.name);
        if stripped == info.name || !stored.contains_key(stripped) {
            stored.insert(stripped, info.name);
        }
    }
    stored
}

/// The stored tensor for a parameter: its own name, else the first other spelling that exists.
fn find_stored<'c>(stored: &BTreeMap<&'c str, &'c str>, name: &str) -> Option<&'c str> {
    if let Some(own) = stored.get(name) {
        return Some(own);
    }
    if name == T5_EMBEDDING {
        return stored.get(T5_EMBEDDING_ALIAS).copied();
    }
    if let Some(rest) = name.strip_prefix("spatial_blocks.") {
        return stored.get(format!("blocks.{rest}").as_str()).copied();
    }
    let (path, parameter) = name.rsplit_once('.')?;
    let old = OLD_ATTENTION.iter().find_map(|(new, old)| {
        let module = path.strip_suffix(new).filter(|module| module.contains(".attentions."))?;
        Some(format!("{module}{old}.{parameter}"))
    })?;
    stored.get(old.as_str()).copied()
}

/// How a stored shape becomes the parameter's: `Some(None)` unchanged, `None` not at all.
fn reconcile(name: &str, expected: &[usize], found: &[usize]) -> Option<Option<Change>> {
    if expected == found {
        return Some(None);
    }
    if name.ends_with("y_embedder.y_embedding")
        && let ([rows, width], [found_rows, found_width]) = (expected, found)
        && width == found_width
        && *found_rows > 0
        && *rows > 0
    {
        return Some(Some(Change::Resized { from: *found_rows }));
    }
    let reshaped = || Some(Some(Change::Reshaped { from: found.to_vec() }));
    if name.contains(".attentions.")
        && let ([rows, columns], [found_rows, found_columns, 1, 1]) = (expected, found)
        && (rows, columns) == (found_rows, found_columns)
    {
        return reshaped();
    }
    if name.ends_with("x_embedder.proj.weight")
        && let [hidden, channels, 1, height, width] = expected
        && found == [*hidden, *channels, *height, *width]
    {
        return reshaped();
    }
    None
}

/// Whether a parameter belongs to a part of which the checkpoint has nothing at all. A part that is there in
/// pieces is damage, not a start.
fn is_new_part(stored: &BTreeMap<&str, &str>, name: &str) -> bool {
    let dotted = format!(".{name}");
    NEW_PARTS.iter().filter(|part| dotted.contains(*part)).any(|part| {
        !stored.keys().any(|stored| stored.contains(part) || stored.starts_with(&part[1..]))
    })
}

fn is_dropped(name: &str, is_t5: bool) -> bool {
    let is_t5_extra = name == T5_EMBEDDING_ALIAS
        || name == "decoder.embed_tokens.weight"
        || name.starts_with("decoder.")
        || name.starts_with("lm_head.");
    RECOMPUTED.contains(&name) || is_t5 && is_t5_extra
}
