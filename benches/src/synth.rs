//! Checkpoints of made-up weights at full size, in upstream's format, to measure what does not depend on the values.
//!
//! Element `e` of a tensor depends on the seed, the tensor's name and `e` only, so the same request gives the same bytes,
//! and an element type only rounds. A tensor is made piece by piece: memory does not grow with the model. Scales are
//! chosen so that activations stay of order one through any depth.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use checkpoint::{DType, SafetensorsWriter, TensorSpec};
use diffusion::fill_normal;
use half::{bf16, f16};
use media::PartFolder;
use serde_json::{Value as Json, json};

use crate::Error;

/// Elements made at once by one thread.
const PIECE: usize = 1 << 20;

/// Most bytes of one file of a checkpoint.
pub const SHARD_BYTES: u64 = 4 << 30;

/// A checkpoint that is to be made.
#[derive(Clone, Debug)]
pub struct Synthetic {
    /// Its `config.json`; `None` for bare tensors.
    pub config: Option<Json>,
    /// Names and shapes of its tensors.
    pub params: Vec<(String, Vec<usize>)>,
    /// Element type: f32, bf16 or f16.
    pub dtype: DType,
    /// The same seed gives the same bytes.
    pub seed: u64,
    /// Most bytes of one file.
    pub shard_bytes: u64,
}

/// How far the work is, and whether to stop it.
pub struct Watch<'a> {
    /// Threads that make numbers.
    pub threads: usize,
    /// Called with the bytes made so far.
    pub on_bytes: &'a mut dyn FnMut(u64),
    /// `true` ends the work with [`Error::Interrupted`]; nothing is left behind then.
    pub interrupt: &'a AtomicBool,
}

impl std::fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("threads", &self.threads).finish_non_exhaustive()
    }
}

impl Synthetic {
    /// Bytes of all tensors.
    ///
    /// # Errors
    /// More than the address space holds.
    pub fn bytes(&self) -> Result<u64, Error> {
        let mut sum = 0u64;
        for spec in self.specs() {
            sum = sum.saturating_add(spec.bytes()?);
        }
        Ok(sum)
    }

    /// Makes the checkpoint folder. It appears whole or not at all; an empty folder of that name is replaced.
    ///
    /// # Errors
    /// The system's (disk full, folder not empty), or [`Error::Interrupted`].
    pub fn write(&self, folder: &Path, mut watch: Watch<'_>) -> Result<(), Error> {
        let in_folder = |error| Error::Io { path: folder.to_path_buf(), error };
        let part = PartFolder::create(folder).map_err(in_folder)?;
        if let Some(config) = &self.config {
            write_json(&part.path().join("config.json"), config)?;
        }
        let stem = self.stem();
        let shards = self.shards()?;
        let count = shards.len();
        let mut weight_map = serde_json::Map::new();
        let mut done = 0;
        for (i, shard) in shards.into_iter().enumerate() {
            let name = match count {
                1 => format!("{stem}.safetensors"),
                _ => format!("{stem}-{:05}-of-{count:05}.safetensors", i + 1),
            };
            weight_map.extend(shard.iter().map(|spec| (spec.name.clone(), json!(name))));
            done = self.write_shard(&part.path().join(name), shard, done, &mut watch)?;
        }
        if count > 1 {
            let index =
                json!({ "metadata": { "total_size": self.bytes()? }, "weight_map": weight_map });
            write_json(&part.path().join(format!("{stem}.safetensors.index.json")), &index)?;
        }
        part.commit().map_err(in_folder)
    }

    /// Diffusers and transformers call their weights differently.
    fn stem(&self) -> &'static str {
        let class = self.config.as_ref().and_then(|config| config.get("_class_name")?.as_str());
        if class == Some("AutoencoderKL") { "diffusion_pytorch_model" } else { "model" }
    }

    fn specs(&self) -> impl Iterator<Item = TensorSpec> {
        let dtype = self.dtype;
        let spec = move |(name, shape): &(String, Vec<usize>)| TensorSpec {
            name: name.clone(),
            dtype,
            shape: shape.clone(),
        };
        self.params.iter().map(spec)
    }

    /// The tensors of each file, in the order of the parameters. A tensor is not split.
    fn shards(&self) -> Result<Vec<Vec<TensorSpec>>, Error> {
        let mut shards = vec![vec![]];
        let mut filled = 0;
        for spec in self.specs() {
            let bytes = spec.bytes()?;
            if filled > 0 && filled + bytes > self.shard_bytes {
                shards.push(vec![]);
                filled = 0;
            }
            filled += bytes;
            shards.last_mut().expect("there is a first one").push(spec);
        }
        Ok(shards)
    }

    fn write_shard(
        &self,
        path: &Path,
        tensors: Vec<TensorSpec>,
        mut done: u64,
        watch: &mut Watch<'_>,
    ) -> Result<u64, Error> {
        // What the reference library writes, and expects where it reads.
        let metadata = [("format".to_string(), "pt".to_string())].into();
        let mut writer = SafetensorsWriter::create(path, tensors, &metadata)?;
        let mut pieces: Vec<Vec<u8>> = vec![Vec::new(); watch.threads.max(1)];
        for spec in writer.tensors().to_vec() {
            let recipe = Recipe::of(&spec.name, &spec.shape);
            let draw = draw(&spec.name);
            let n: usize = spec.shape.iter().product();
            for start in (0..n).step_by(PIECE * pieces.len()) {
                if watch.interrupt.load(Ordering::Relaxed) {
                    return Err(Error::Interrupted);
                }
                thread::scope(|scope| {
                    for (i, piece) in pieces.iter_mut().enumerate() {
                        let first = (start + i * PIECE).min(n);
                        let count = PIECE.min(n - first);
                        scope.spawn(move || {
                            let values = recipe.values(self.seed, draw, first, count);
                            encode(&values, self.dtype, piece);
                        });
                    }
                });
                for piece in &pieces {
                    writer.write(piece)?;
                    done += piece.len() as u64;
                }
                (watch.on_bytes)(done);
            }
        }
        writer.finish()?;
        Ok(done)
    }
}

/// A number for a tensor's name (FNV-1a), so that a tensor keeps its values whatever else is in the model.
fn draw(name: &str) -> u64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    })
}

/// What a tensor's elements are.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Recipe {
    /// Normal around a mean.
    Normal { mean: f32, std: f32 },
    /// The frequencies of rotary positions: `10000^(-i / count)`.
    RopeFrequencies { count: usize },
}

impl Recipe {
    fn of(name: &str, shape: &[usize]) -> Recipe {
        let normal = |mean, std| Recipe::Normal { mean, std };
        let is_table = name.contains("scale_shift_table") || name.ends_with("y_embedding");
        match shape {
            [count] if name == "rope.freqs" => Recipe::RopeFrequencies { count: *count },
            // Norms are the only vectors that are called a weight.
            [_] if name.ends_with("weight") => normal(1.0, 0.1),
            [_] => normal(0.0, 0.02),
            [_, width] if is_table => normal(0.0, (*width as f32).powf(-0.5)),
            _ if name.ends_with("relative_attention_bias.weight") => normal(0.0, 0.5),
            _ if name.ends_with("shared.weight") => normal(0.0, 1.0),
            [_, inner @ ..] => {
                let fan_in = inner.iter().product::<usize>() as f32;
                // T5 does not scale its scores: its queries are small by training. Heads are 64 wide.
                let is_t5_query = name.ends_with("SelfAttention.q.weight");
                normal(0.0, fan_in.powf(-0.5) * if is_t5_query { 0.125 } else { 1.0 })
            }
            [] => normal(0.0, 1.0),
        }
    }

    /// Elements `first..first + count`.
    fn values(self, seed: u64, draw: u64, first: usize, count: usize) -> Vec<f32> {
        match self {
            Recipe::Normal { mean, std } => {
                let mut values = vec![0.0; count];
                fill_normal(seed, draw, first as u64, &mut values);
                for value in &mut values {
                    *value = mean + std * *value;
                }
                values
            }
            Recipe::RopeFrequencies { count: all } => {
                let frequency = |i: usize| 10000f64.powf(-(i as f64) / all as f64) as f32;
                (first..first + count).map(frequency).collect()
            }
        }
    }
}

/// Rounds to nearest even.
fn encode(values: &[f32], dtype: DType, out: &mut Vec<u8>) {
    out.clear();
    match dtype {
        DType::BF16 => out.extend(values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes())),
        DType::F16 => out.extend(values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes())),
        _ => out.extend(values.iter().flat_map(|x| x.to_le_bytes())),
    }
}

fn write_json(path: &Path, value: &Json) -> Result<(), Error> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(format!("{value:#}\n").as_bytes())?;
        file.sync_all()
    };
    write().map_err(|error| Error::Io { path: path.to_path_buf(), error })
}

#[cfg(test)]
mod tests {
    use super::*;
    use checkpoint::{Checkpoint, Format, identify};
    use models::published;
    use std::collections::BTreeMap;

    fn small(dtype: DType, shard_bytes: u64) -> Synthetic {
        let model = published::find("stdit2-xl").unwrap();
        let mut config = model.config_json();
        for (key, value) in [("depth", 2), ("hidden_size", 48), ("num_heads", 2)] {
            config[key] = json!(value);
        }
        config["caption_channels"] = json!(32);
        let params = model.parse(&config).unwrap().params().unwrap();
        Synthetic { config: Some(config), params, dtype, seed: 7, shard_bytes }
    }

    fn write(synthetic: &Synthetic, folder: &Path, threads: usize) -> Result<u64, Error> {
        let mut bytes = 0;
        let watch = Watch {
            threads,
            on_bytes: &mut |done| bytes = done,
            interrupt: &AtomicBool::new(false),
        };
        synthetic.write(folder, watch).map(|()| bytes)
    }

    fn values(folder: &Path) -> BTreeMap<String, Vec<f32>> {
        let checkpoint = Checkpoint::open(folder).unwrap();
        let read = |name: &str| (name.to_string(), checkpoint.to_f32(name).unwrap());
        checkpoint.tensors().map(|info| read(info.name)).collect()
    }

    #[test]
    fn what_is_written_is_recognized_and_complete() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model");
        let synthetic = small(DType::F32, SHARD_BYTES);
        assert_eq!(write(&synthetic, &path, 2).unwrap(), synthetic.bytes().unwrap());
        let checkpoint = Checkpoint::open(&path).unwrap();
        let identity = identify(&checkpoint);
        assert_eq!(identity.kind, checkpoint::Kind::StDit2);
        assert!(identity.contradictions.is_empty(), "{:?}", identity.contradictions);
        checkpoint::names::fit(&checkpoint, &synthetic.params).unwrap();
        assert!(values(&path).values().flatten().all(|x| x.is_finite()));
    }

    #[test]
    fn shards_and_threads_do_not_change_a_value_and_a_type_only_rounds() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        write(&small(DType::F32, SHARD_BYTES), &path("one"), 1).unwrap();
        write(&small(DType::F32, 50_000), &path("sharded"), 3).unwrap();
        write(&small(DType::BF16, SHARD_BYTES), &path("bf16"), 2).unwrap();
        assert_eq!(Checkpoint::open(path("sharded")).unwrap().format(), Format::Sharded);
        let one = values(&path("one"));
        assert_eq!(one, values(&path("sharded")));
        for (name, rounded) in values(&path("bf16")) {
            let expected = one[&name].iter().map(|x| bf16::from_f32(*x).to_f32());
            assert!(expected.eq(rounded.iter().copied()), "{name}");
        }
    }

    #[test]
    fn tensors_of_one_shape_differ() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model");
        write(&small(DType::F32, SHARD_BYTES), &path, 1).unwrap();
        let values = values(&path);
        assert_ne!(values["blocks.0.mlp.fc1.weight"], values["blocks.1.mlp.fc1.weight"]);
        assert_ne!(values["blocks.0.attn.q_norm.weight"], values["blocks.0.attn.k_norm.weight"]);
        assert_eq!(values["rope.freqs"][0], 1.0);
    }

    #[test]
    fn an_interrupt_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let interrupt = AtomicBool::new(false);
        let watch = Watch {
            threads: 1,
            on_bytes: &mut |_| interrupt.store(true, Ordering::Relaxed),
            interrupt: &interrupt,
        };
        let result = small(DType::F32, SHARD_BYTES).write(&folder.path().join("model"), watch);
        assert!(matches!(result, Err(Error::Interrupted)));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
