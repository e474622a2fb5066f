//! Recipes: those that were published, and what a file may not say.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use diffusion::schedule::Precision;
use training::{LrSchedule, Model, PUBLISHED, Recipe, Weighting, find};

#[test]
fn published_recipes_are_whole() {
    let names: Vec<&str> = PUBLISHED.iter().map(|(name, _)| *name).collect();
    assert!(names.is_sorted(), "{names:?}");
    for name in names {
        let recipe = find(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(!recipe.about.is_empty());
    }
    let error = find("opensora-1.1-stage4").unwrap_err().to_string();
    assert!(error.contains("did you mean `opensora-1.1-stage1`?"), "{error}");
}

/// Numbers of upstream's configuration, picked from each section.
#[test]
fn open_sora_1_1_is_upstreams() {
    let recipe = find("opensora-1.1-stage3").unwrap();
    let Model::Stdit2(config) = recipe.model().unwrap() else { panic!("STDiT-2") };
    assert_eq!((config.common.depth, config.common.model_max_length), (28, 200));
    assert!(config.qk_norm);
    let options = recipe.options().unwrap();
    assert_eq!(options.max_norm, Some(1.0));
    assert_eq!(options.optimizer.eps, 1e-8);
    assert_eq!((options.precision, options.weighting), (Precision::F32, Weighting::Uniform));
    assert!(options.caption_dropout);
    assert_eq!(recipe.lr_schedule().unwrap().rate(recipe.optimizer.lr, 99), 2e-5);
    assert_eq!((recipe.data.frame_interval, recipe.data.vae_micro_batch), (3, Some(4)));
    let bucket = |resolution: &str, frames: usize| {
        let mut rows = recipe.buckets.iter();
        let row = rows.find(|row| row.resolution == resolution && row.frames == frames).unwrap();
        (row.keep, row.batch)
    };
    assert_eq!(recipe.buckets.len(), 35);
    assert_eq!(bucket("240p", 32), (0.5, Some(10)));
    assert_eq!(bucket("720p", 16), (0.6, Some(3)));
    assert_eq!(bucket("720p", 96), (0.0, None));
    assert_eq!((recipe.masks[0].name.as_str(), recipe.masks[0].share), ("identity", 0.75));
    assert_eq!(recipe.masks.len(), 9);
}

#[test]
fn open_sora_1_0_scales_positions() {
    for (name, space, time, batch) in [
        ("opensora-1.0-16x256x256", 0.5, 1.0, 8),
        ("opensora-1.0-16x512x512", 1.0, 1.0, 8),
        ("opensora-1.0-64x512x512", 1.0, 2.0 / 3.0, 4),
    ] {
        let recipe = find(name).unwrap();
        let Model::Stdit1(config) = recipe.model().unwrap() else { panic!("STDiT") };
        assert_eq!((config.space_scale, config.time_scale), (space, time), "{name}");
        assert_eq!(recipe.fixed.as_ref().unwrap().batch, batch);
        assert!(recipe.data.horizontal_flip);
        assert_eq!(recipe.options().unwrap().precision, Precision::F64);
    }
}

#[test]
fn a_recipe_may_adapt_weights() {
    let (_, text) = PUBLISHED.iter().find(|(name, _)| *name == "opensora-1.1-stage3").unwrap();
    let lora = "[lora]\nrank = 16\nalpha = 32\ntargets = [\"attn.qkv\", \"mlp\"]\n[run]";
    let recipe = Recipe::parse(&text.replacen("[run]", lora, 1)).unwrap();
    let lora = recipe.options().unwrap().lora.unwrap();
    assert_eq!((lora.rank, lora.alpha, lora.seed), (16, 32.0, 42));
    assert_eq!(lora.targets, ["attn.qkv", "mlp"]);
}

#[test]
fn fine_tuning_warms_up_and_anneals() {
    let schedule = |name: &str| find(name).unwrap().lr_schedule().unwrap();
    assert_eq!(
        schedule("brickfilm-360p-32f-stage1"),
        LrSchedule::CosineWarmup { start: 1e-7, steps: 1500 }
    );
    assert_eq!(
        schedule("brickfilm-360p-32f-stage2"),
        LrSchedule::CosineAnnealing { end: 1e-5, steps: 2500 }
    );
    assert_eq!(find("brickfilm-360p-64f-stage1").unwrap().optimizer.lr, 1e-5);
}

/// Each line is replaced in a recipe that is right.
#[test]
fn wrong_recipes_are_refused_with_the_place() {
    let stage3 = PUBLISHED.iter().find(|(name, _)| *name == "opensora-1.1-stage3").unwrap().1;
    let flare = PUBLISHED.iter().find(|(name, _)| *name == "tiny-flare").unwrap().1;
    for (text, old, new, expected) in [
        (stage3, "lr = 2e-05", "lrr = 2e-05", "unknown key `optimizer.lrr`; did you mean `lr`?"),
        (stage3, "[schedule]", "[shedule]", "unknown key `shedule`; did you mean `schedule`?"),
        (stage3, "keep = 0.6", "kep = 0.6", "unknown key `buckets.kep`; did you mean `keep`?"),
        (stage3, "lr = 2e-05", "lr = \"low\"", "line "),
        (stage3, "lr = 2e-05", "", "missing field `lr`"),
        (stage3, "lr = 2e-05", "lr = 0.0", "optimizer.lr 0, expected above 0"),
        (stage3, "lr = 2e-05", "lr = nan", "optimizer.lr NaN"),
        (stage3, "\"720p\", frames = 16", "\"720\", frames = 16", "did you mean `720p`?"),
        (stage3, "frames = 128", "frames = 64", "is there twice"),
        (stage3, "keep = 0.6, batch = 3", "keep = 0.6", "batch is missing"),
        (stage3, "share = 0.75", "share = 0.7", "together, expected 1"),
        (stage3, "\"identity\"", "\"mask_no\"", "mask `mask_no` is unknown"),
        (stage3, "\"stdit2-xl\"", "\"stdit2-xxl\"", "did you mean `stdit2-xl`?"),
        (stage3, "\"stdit2-xl\"", "\"t5-xl\"", "cannot be trained"),
        (stage3, "kind = \"constant\"", "kind = \"linear-warmup\"", "schedule.steps is missing"),
        (
            stage3,
            "kind = \"constant\"",
            "kind = \"constant\"\nend = 0.1",
            "schedule.end has no effect",
        ),
        (stage3, "workers = 8", "workers = 0", "data.workers is 0"),
        (stage3, "log_every = 10", "log_every = -1", "line "),
        (stage3, "[model]", "[model]\nfreeze = 1", "unknown key `model.freeze`"),
        (flare, "hidden_size = 192", "hidden_sise = 192", "config key `hidden_sise`"),
        (flare, "num_heads = 6", "num_heads = 7", "7 heads"),
        (flare, "[fixed]", "[run.fixed]", "unknown key `run.fixed`"),
        (flare, "batch = 16", "batch = 0", "fixed.batch is 0"),
        (flare, "betas = [0.9, 0.999]", "betas = [0.9, 1.0]", "`betas`: 1"),
        (flare, "betas = [0.9, 0.999]", "freeze = \"txt\"", "`freeze`: `txt`"),
        (flare, "[run]", "[lora]\nrank = 0\nalpha = 1.0\ntargets = [\"attn\"]\n[run]", "lora.rank"),
        (flare, "[run]", "[lora]\nrnk = 4\n[run]", "unknown key `lora.rnk`; did you mean `rank`?"),
        (flare, "steps = 5441\nend", "steps = 0\nend", "0 steps"),
    ] {
        assert!(text.contains(old), "{old}");
        let error = Recipe::parse(&text.replacen(old, new, 1)).expect_err(new).to_string();
        assert!(error.contains(expected), "{new}: {error}");
    }
    let both = format!("buckets = [{{ resolution = \"144p\", frames = 1, keep = 0.0 }}]\n{flare}");
    let error = Recipe::parse(&both).unwrap_err().to_string();
    assert!(error.contains("either `buckets` or `fixed`"), "{error}");
    assert!(Recipe::parse("a = [").unwrap_err().to_string().contains("line 1"));
}
