//! Which keys a recipe has: those of one that has them all. A new key of a section needs a value here,
//! which the compiler asks for.

use models::nearest::nearest;

use crate::recipe::{
    BucketShare, DTypeName, DataSection, FixedSize, LoraSection, LossKind, LossSection, MaskShare,
    ModelSection, OptimizerSection, Recipe, RunSection, ScheduleKind, ScheduleSection,
    TablePrecision, TextSection, Transform, default_betas, default_eps, fail, nothing, one,
};
use crate::recipe_subject::same_rate;
use crate::{Error, ValidationSection};

/// Fails for a key that no recipe has, with the nearest.
pub(crate) fn check_keys(recipe: &toml::Value) -> Result<(), Error> {
    check(recipe, &template(), "")
}

/// Fails for a key of `value` that `known` has not. Elements of lists are held against the first known.
fn check(value: &toml::Value, known: &toml::Value, path: &str) -> Result<(), Error> {
    match (value, known) {
        (toml::Value::Table(table), toml::Value::Table(known)) => {
            for (key, value) in table {
                let place = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                let Some(known_value) = known.get(key) else {
                    let meant = nearest(key, known.keys().map(String::as_str));
                    return fail(format!("unknown key `{place}`; did you mean `{meant}`?"));
                };
                // What a model is configured by is for its own reader.
                if !["model.config", "text.config"].contains(&place.as_str()) {
                    check(value, known_value, &place)?;
                }
            }
            Ok(())
        }
        (toml::Value::Array(values), toml::Value::Array(known)) => {
            let Some(known) = known.first() else { return Ok(()) };
            values.iter().try_for_each(|value| check(value, known, path))
        }
        _ => Ok(()),
    }
}

/// A recipe that has every key.
fn template() -> toml::Value {
    let recipe = Recipe {
        about: String::new(),
        buckets: vec![BucketShare {
            resolution: String::new(),
            frames: 1,
            keep: 1.0,
            batch: Some(1),
        }],
        masks: vec![MaskShare { name: String::new(), share: 1.0 }],
        fixed: Some(FixedSize { frames: 1, height: 1, width: 1, batch: 1 }),
        model: ModelSection {
            architecture: String::new(),
            config: toml::Table::new(),
            start: Some(String::new()),
            dtype: DTypeName::F32,
        },
        data: DataSection {
            frame_interval: 1,
            transform: Transform::Center,
            horizontal_flip: false,
            workers: 1,
            vae_micro_batch: Some(1),
        },
        text: Some(TextSection {
            architecture: String::new(),
            config: toml::Table::new(),
            lr_factor: same_rate(),
        }),
        loss: LossSection {
            kind: LossKind::Iddpm,
            tables: Some(TablePrecision::F32),
            caption_dropout: 0.0,
            min_snr_gamma: Some(1.0),
            l1: Some(0.0),
            mse: Some(0.0),
            kl: Some(0.0),
            salient: Some(1.0),
            initial_std: Some(1.0),
        },
        optimizer: OptimizerSection {
            lr: 1.0,
            betas: default_betas(),
            eps: default_eps(),
            weight_decay: 0.0,
            max_norm: Some(1.0),
            ema_decay: Some(0.0),
            micro_batches: one(),
            freeze: nothing(),
        },
        schedule: ScheduleSection {
            kind: ScheduleKind::Constant,
            steps: Some(1),
            start: Some(0.0),
            end: Some(0.0),
        },
        lora: Some(LoraSection { rank: 1, alpha: 1.0, targets: vec![String::new()] }),
        validation: Some(ValidationSection {
            every: 1,
            prompts: vec![String::new()],
            steps: 1,
            cfg_scale: 1.0,
            frames: 1,
            height: 1,
            width: 1,
            fps: 1.0,
        }),
        run: RunSection {
            seed: 0,
            epochs: 1,
            steps: Some(1),
            log_every: 1,
            checkpoint_every: 1,
            gradient_checkpointing: false,
        },
    };
    toml::Value::try_from(recipe).expect("a recipe is a table")
}
