//! Recipes: those that were published, and what a file may not say.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use diffusion::schedule::Precision;
use models::Bucket;
use models::vae::{FrameBucket, LATENT_SCALE};
use ops::DType;
use training::{
    LrSchedule, Model, Objective as _, PUBLISHED, Param, Recipe, Subject, Text, Weighting, find,
    training_step, update_step,
};

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

/// Adapting trains the projections of attention, as the recipe's comments say.
#[test]
fn a_recipe_may_adapt_weights() {
    let recipe = find("opensora-1.1-lora").unwrap();
    let (model, options) = (recipe.model().unwrap(), recipe.options().unwrap());
    let lora = options.lora.clone().unwrap();
    assert_eq!((lora.rank, lora.alpha, lora.seed), (32, 32.0, 42));
    let n_params = |params: &[Param]| -> usize {
        params.iter().map(|param| param.shape.iter().product::<usize>()).sum()
    };
    let all = model.parameters(&options).unwrap();
    let trained = update_step(&model, &options).unwrap().trained;
    let n_trained: usize = trained.iter().map(|(_, ty)| ty.count()).sum();
    assert_eq!((n_params(&all) / 100_000, n_trained / 100_000), (7682, 196));
    // Every projection of every attention, two factors each.
    let is_adapted = |param: &&Param| param.name.contains("attn") && param.shape.len() == 2;
    let n_adapted = all.iter().filter(is_adapted).count();
    assert_eq!((n_adapted, trained.len()), (28 * 7, 2 * n_adapted));
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

/// What two cores sustain in training, in FLOP/s: little of what they can, as the layers of small models are small.
const SUSTAINED: f64 = 150e9;

/// The recipes of the embedded model from nothing: what they make fits together, and is made in three hours.
#[test]
fn the_embedded_model_is_made_in_three_hours() {
    let vae = find("flare-vae").unwrap();
    let Subject::Autoencoder(autoencoder) = vae.subject().unwrap() else { panic!("autoencoder") };
    assert_eq!((autoencoder.l1, autoencoder.mse, autoencoder.kl), (1.0, 1.0, 1e-6));
    let size = vae.fixed.as_ref().unwrap();
    let (frames, height, width) = (size.frames * size.batch, size.height, size.width);
    let images = FrameBucket { dtype: DType::F32, frames, height, width };
    let step = training_step(&autoencoder, &images, &vae.options().unwrap()).unwrap();
    let work = step.graph.flops() as f64 * vae.run.steps.unwrap() as f64;

    let flare = find("flare").unwrap();
    let (model, options) = (flare.model().unwrap(), flare.options().unwrap());
    let size = flare.fixed.as_ref().unwrap();
    assert_eq!(model.common().in_channels, autoencoder.config.latent_channels);
    let down = autoencoder.config.downscale();
    let latent = [size.frames, size.height / down, size.width / down];
    let pixels = [size.height as f64, size.width as f64];
    let tokens = model.common().model_max_length;
    let bucket = Bucket { frame_mask: true, ..Bucket::new(size.batch, latent, pixels, tokens) };
    let step = training_step(&model, &bucket, &options).unwrap();
    let work = work + step.graph.flops() as f64 * flare.run.steps.unwrap() as f64;
    let hours = work / SUSTAINED / 3600.0;
    assert!((1.5..3.0).contains(&hours), "{hours} hours for {work:e} FLOPs");
    for recipe in [&vae, &flare] {
        // The rate is low when the run ends.
        let last = recipe.run.steps.unwrap() - 1;
        let rate = recipe.lr_schedule().unwrap().rate(recipe.optimizer.lr, last);
        assert!(rate < recipe.optimizer.lr / 8.0, "{rate}");
    }

    // A first frame that is given is continued.
    let share = |name: &str| {
        flare.masks.iter().filter(|mask| mask.name == name).map(|mask| mask.share).sum::<f64>()
    };
    assert!(share("image_head") >= 0.1 && share("identity") >= 0.5);
    assert!(options.caption_dropout);
    let Text::Encoder { config, lr_factor: _ } = &options.text else { panic!("an encoder") };
    assert_eq!(config.d_model, model.common().caption_channels);
}

/// What a run makes of a pipeline's folder.
#[test]
fn parts_have_what_is_trained() {
    let flare = find("flare").unwrap();
    let parts = flare.parts().unwrap();
    let folders: Vec<&str> = parts.iter().map(|part| part.folder).collect();
    assert_eq!(folders, ["transformer", "text_encoder"]);
    let names = parts.iter().flat_map(|part| &part.params).map(|param| param.name.clone());
    let model = flare.model().unwrap();
    let all = model.parameters(&flare.options().unwrap()).unwrap();
    assert!(names.eq(all.into_iter().map(|param| param.name)));
    assert_eq!(parts[1].config["d_model"], 128);
    assert_eq!(parts[0].config["patch_size"], serde_json::json!([1, 4, 4]));
    let parts = find("flare-vae").unwrap().parts().unwrap();
    let [part] = &parts[..] else { panic!("one part") };
    assert_eq!((part.folder, part.file), ("vae", "diffusion_pytorch_model.safetensors"));
    assert_eq!(part.config["scaling_factor"], LATENT_SCALE);
    assert_eq!(find("tiny-flare").unwrap().parts().unwrap().len(), 1);
}

/// Each line is replaced in a recipe that is right.
#[test]
fn wrong_recipes_are_refused_with_the_place() {
    let stage3 = PUBLISHED.iter().find(|(name, _)| *name == "opensora-1.1-stage3").unwrap().1;
    let flare = PUBLISHED.iter().find(|(name, _)| *name == "tiny-flare").unwrap().1;
    let joint = PUBLISHED.iter().find(|(name, _)| *name == "flare").unwrap().1;
    let vae = PUBLISHED.iter().find(|(name, _)| *name == "flare-vae").unwrap().1;
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
        (
            flare,
            "[run]",
            "[lora]\nrank = 2\nalpha = 1.0\ntargets = [\"attn\", \"mlp.fc3\"]\n[run]",
            "did you mean one of `mlp.fc1`, `mlp.fc2`,",
        ),
        (
            joint,
            "[run]",
            "[lora]\nrank = 2\nalpha = 1.0\ntargets = [\"attn\"]\n[run]",
            "lora adapts the transformer alone",
        ),
        (
            vae,
            "[run]",
            "[lora]\nrank = 2\nalpha = 1.0\ntargets = [\"conv1\"]\n[run]",
            "`sd-vae` is an autoencoder: leave `lora` out",
        ),
        (flare, "[run]", "[lora]\nrnk = 4\n[run]", "unknown key `lora.rnk`; did you mean `rank`?"),
        (flare, "steps = 5441\nend", "steps = 0\nend", "0 steps"),
        (flare, "tables = \"f32\"", "", "loss.tables is missing with kind Iddpm"),
        (flare, "tables = \"f32\"", "tables = \"f32\"\nkl = 0.1", "loss.kl has no effect"),
        (flare, "caption_dropout = 0.1", "caption_dropout = 1.0", "expected 0 to below 1"),
        (joint, "min_snr_gamma = 1.0", "min_snr_gamma = 0.0", "expected a number above 0"),
        (joint, "kind = \"iddpm\"", "kind = \"iddpm-speed\"", "min_snr_gamma has no effect"),
        (flare, "\"stdit2-xl\"", "\"sd-vae\"", "config key `caption_channels`"),
        (joint, "\"t5-large\"", "\"t5-larg\"", "did you mean `t5-large`?"),
        (joint, "\"t5-large\"", "\"sd-vae\"", "text.architecture `sd-vae` cannot be trained"),
        (joint, "d_model = 128", "d_model = 64", "features are 64 wide, the transformer reads 128"),
        (joint, "num_layers = 2", "num_layers = 0", "config key `num_layers`"),
        (joint, "lr_factor = 1.0", "lr_factor = -1.0", "`text.lr_factor`: -1"),
        (joint, "lr_factor = 1.0", "lr_facto = 1.0", "did you mean `lr_factor`?"),
        (vae, "kl = 1e-06", "", "loss.kl is missing with kind Reconstruction"),
        (vae, "kl = 1e-06", "kl = -1.0", "`loss.kl`: -1"),
        (vae, "kl = 1e-06", "kl = 1e-06\ncaption_dropout = 0.1", "caption_dropout has no effect"),
        (vae, "l1 = 1.0\nmse = 1.0", "", "nothing tells images apart"),
        (vae, "\"reconstruction\"", "\"iddpm\"", "loss.tables is missing"),
        (
            vae,
            "kind = \"reconstruction\"\nl1 = 1.0\nmse = 1.0\nkl = 1e-06\nsalient = 4.0\ninitial_std = 0.02",
            "kind = \"iddpm\"\ntables = \"f32\"",
            "loss.kind Iddpm is not of model.architecture `sd-vae`; expected Reconstruction",
        ),
        (vae, "workers = 2", "workers = 2\nvae_micro_batch = 4", "vae_micro_batch has no effect"),
        (vae, "norm_num_groups = 8", "norm_num_groups = 5", "do not split into 5 groups"),
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
