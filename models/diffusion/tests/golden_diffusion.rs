//! Schedules, sampler steps and video sizes against upstream's own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod golden;

use std::collections::BTreeMap;

use diffusion::schedule::{Precision, SpeedTables, Tables};
use diffusion::{
    DpmSolver, Guidance, Iddpm, IddpmSettings, MaskStrategy, MeanKind, RESOLUTION_NAMES, Release,
    Update, VarianceKind, append_model_input, closest_aspect, image_size, num_frames, resolution,
};
use golden::{Case, Golden, json, relative_l2};
use ops::{Builder, DType, Graph, Rounding, Tensor, TensorType, eval};

/// Steps in f32 agree with upstream's to f32 rounding, which ten to twenty-five steps accumulate.
const STEP_TOLERANCE: f64 = 1e-5;

fn column<'a>(t: &'a Tables, name: &str) -> &'a [f64] {
    match name {
        "betas" => &t.betas,
        "alphas_cumprod" => &t.alphas_cumprod,
        "alphas_cumprod_prev" => &t.alphas_cumprod_prev,
        "alphas_cumprod_next" => &t.alphas_cumprod_next,
        "sqrt_alphas_cumprod" => &t.sqrt_alphas_cumprod,
        "sqrt_one_minus_alphas_cumprod" => &t.sqrt_one_minus_alphas_cumprod,
        "log_one_minus_alphas_cumprod" => &t.log_one_minus_alphas_cumprod,
        "sqrt_recip_alphas_cumprod" => &t.sqrt_recip_alphas_cumprod,
        "sqrt_recipm1_alphas_cumprod" => &t.sqrt_recipm1_alphas_cumprod,
        "posterior_variance" => &t.posterior_variance,
        "posterior_log_variance_clipped" => &t.posterior_log_variance_clipped,
        "posterior_mean_coef1" => &t.posterior_mean_coef1,
        "posterior_mean_coef2" => &t.posterior_mean_coef2,
        other => panic!("table {other} is not known"),
    }
}

/// Compares every table of every respacing; each entry on its own.
fn check_tables(folder: &str, precision: Precision, tolerance: f64) {
    let case = Case::open(&format!("{folder}/tables.safetensors"));
    let maps = json(&format!("{folder}/config.json"))["timestep_maps"].clone();
    let names = case.names();
    assert!(names.len() >= 6 * 13, "{names:?}");
    for name in names {
        let (respacing, table) = name.split_once('.').unwrap();
        let text = match respacing {
            "full1000" => String::new(),
            other => other.replace('_', ","),
        };
        let tables = Tables::linear(&text, precision).unwrap();
        let map: Vec<usize> = serde_json::from_value(maps[respacing].clone())
            .or_else(|_| serde_json::from_value(maps[text.as_str()].clone()))
            .unwrap();
        assert_eq!(tables.timesteps, map, "{respacing}");
        for (k, (got, want)) in
            column(&tables, table).iter().zip(&case.get(&name).values).enumerate()
        {
            let close = (got - want).abs() <= tolerance * want.abs();
            assert!(close, "{name}[{k}]: {got:e}, expected {want:e}");
        }
    }
}

#[test]
fn tables_of_1_0_are_upstreams() {
    check_tables("iddpm_v1_0_0", Precision::F64, 1e-12);
}

/// f32 functions of two libraries may differ in the last place: 1e-6 is 16 of them.
#[test]
fn tables_of_1_1_are_upstreams() {
    check_tables("iddpm_v1_1_0", Precision::F32, 1e-6);
}

/// The probabilities magnify differences of neighboring noise levels by 1e6, so one unit in the
/// last place of a level (by which square roots of libraries differ) moves them by up to 3%.
/// They are therefore derived from upstream's own levels.
#[test]
fn speed_tables_are_upstreams() {
    let case = Case::open("iddpm_speed_v1_1_0/tables.safetensors");
    let levels = Case::open("iddpm_v1_1_0/tables.safetensors");
    let mut tables = Tables::linear("", Precision::F32).unwrap();
    tables.sqrt_one_minus_alphas_cumprod =
        levels.get("full1000.sqrt_one_minus_alphas_cumprod").values;
    let speed = SpeedTables::new(&tables);
    let config = json("iddpm_speed_v1_1_0/config.json");
    assert_eq!(speed.meaningful_steps as u64, config["meaningful_steps"].as_u64().unwrap());
    for (name, got) in
        [("p", &speed.probabilities), ("weights", &speed.weights), ("snr", &speed.snr)]
    {
        let error = relative_l2(got, &case.get(name).values);
        assert!(error < 1e-6, "{name}: {error:e}");
    }
}

/// The golden toy model on `x` `[rows, 4, T, H, W]`: 8 channels. `y` has one mean per row, `noisy`
/// one flag per row and frame.
fn toy(x: &Tensor, timestep: f32, y: &[f64], noisy: Option<&[bool]>) -> Tensor {
    let shape = x.shape().to_vec();
    let [rows, channels, frames] = [shape[0], shape[1], shape[2]];
    let block = x.ty().count() / rows;
    let frame = block / channels / frames;
    let time = f64::from(timestep) / 1000.0;
    let half = |f: &dyn Fn(f64, f64) -> f64, row: usize| -> Vec<f64> {
        let xs = &x.as_floats()[row * block..(row + 1) * block];
        xs.iter()
            .enumerate()
            .map(|(k, &x)| {
                let clean = noisy.is_some_and(|noisy| !noisy[row * frames + k / frame % frames]);
                f(x, y[row]) * if clean { 0.5 } else { 1.0 }
            })
            .collect()
    };
    let mut out = Vec::new();
    for row in 0..rows {
        out.extend(half(&|x, m| 0.6 * x + 0.2 * x.tanh() * (3.0 * time).cos() + 0.1 * m, row));
        out.extend(half(&|x, _| 0.3 * (x + 2.0 * time).sin(), row));
    }
    let mut doubled = shape;
    doubled[1] *= 2;
    Tensor::floats(TensorType::new(DType::F32, doubled).unwrap(), out).rounded()
}

fn floats(golden: &Golden) -> Tensor {
    let ty = TensorType::new(DType::F32, golden.shape.clone()).unwrap();
    Tensor::floats(ty, golden.values.clone())
}

/// The first `rows` rows of a golden tensor.
fn rows_of(golden: &Golden, rows: usize) -> Tensor {
    let mut shape = golden.shape.clone();
    let count = golden.values.len() / shape[0] * rows;
    shape[0] = rows;
    let ty = TensorType::new(DType::F32, shape).unwrap();
    Tensor::floats(ty, golden.values[..count].to_vec())
}

fn vector(values: &[f32]) -> Tensor {
    Tensor::f32(&[values.len()], values).unwrap()
}

fn flags(shape: [usize; 2], values: &[bool]) -> Tensor {
    let ty = TensorType::new(DType::Bool, shape).unwrap();
    Tensor::ints(ty, values.iter().map(|&flag| i64::from(flag)).collect())
}

fn means(golden: &Golden) -> Vec<f64> {
    let rows = golden.shape[0];
    let count = golden.values.len() / rows;
    golden.values.chunks(count).map(|row| row.iter().sum::<f64>() / count as f64).collect()
}

fn run(graph: &Graph, given: Vec<(&str, Tensor)>) -> Vec<Tensor> {
    let given: BTreeMap<String, Tensor> =
        given.into_iter().map(|(name, tensor)| (name.to_string(), tensor)).collect();
    eval(graph, &given, Rounding::Stored).unwrap()
}

fn assert_close(got: &[f64], want: &[f64], what: &str) {
    let error = relative_l2(got, want);
    assert!(error <= STEP_TOLERANCE, "{what}: relative L2 {error:e}");
}

/// Checks the model's input and output of one call against the golden call.
fn check_call(case: &Case, call: usize, timestep: f32, x: &Tensor, out: &Tensor) {
    let times = case.get(&format!("model.{call:03}.t"));
    assert!(
        times.values.iter().all(|t| (t - f64::from(timestep)).abs() <= 1e-4),
        "call {call}: timestep {timestep}, expected {:?}",
        times.values
    );
    let golden_x = case.get(&format!("model.{call:03}.x"));
    assert_close(x.as_floats(), &golden_x.values, &format!("call {call}: x"));
    let golden_out = case.get(&format!("model.{call:03}.out"));
    assert_close(out.as_floats(), &golden_out.values, &format!("call {call}: out"));
}

struct Sampling<'a> {
    folder: &'a str,
    file: &'a str,
    settings: IddpmSettings,
    masked: bool,
}

fn settings(precision: Precision, respacing: &str, guidance: Option<Guidance>) -> IddpmSettings {
    IddpmSettings {
        respacing: respacing.into(),
        precision,
        mean: MeanKind::Noise,
        variance: VarianceKind::LearnedRange,
        update: Update::Ancestral,
        guidance,
    }
}

/// Runs a whole sampling loop on the interpreter and compares every model call and the result.
fn check_sampling(sampling: &Sampling<'_>) {
    let case = Case::open(&format!("{}/{}.safetensors", sampling.folder, sampling.file));
    let guided = sampling.settings.guidance.is_some();
    let sampler = Iddpm::new(sampling.settings.clone()).unwrap();
    let mut x = floats(&case.get("in.z"));
    let [rows, frames] = [x.shape()[0], x.shape()[2]];
    let y = if guided {
        [means(&case.get("in.y_cond")), means(&case.get("in.y_null"))].concat()
    } else {
        means(&case.get("in.y"))
    };
    let mask: Option<Vec<f32>> = sampling
        .masked
        .then(|| case.get("in.mask").values.iter().map(|&ratio| ratio as f32).collect());

    // Two graphs: what comes before the model, and what comes after.
    let mut b = Builder::new("before");
    let input = b.input("x", x.ty().clone());
    let mut noised = input;
    let flag_type = TensorType::new(DType::Bool, [rows, frames]).unwrap();
    let coefficient_type = TensorType::new(DType::F32, [Iddpm::N_COEFFICIENTS]).unwrap();
    if mask.is_some() {
        let noise = b.input("noise", x.ty().clone());
        let renoised = b.input("renoised", flag_type.clone());
        let coefficients = b.input("coefficients", coefficient_type.clone());
        noised = sampler.append_renoise(&mut b, input, noise, renoised, coefficients).unwrap();
    }
    let model_x = if guided { append_model_input(&mut b, noised).unwrap() } else { noised };
    let out_shape = [b.shape(model_x)[0], 8, frames, x.shape()[3], x.shape()[4]];
    let before = b.finish(&[noised, model_x]);

    let mut b = Builder::new("after");
    let input = b.input("x", x.ty().clone());
    let out = b.input("out", TensorType::new(DType::F32, out_shape).unwrap());
    let noise = b.input("noise", x.ty().clone());
    let coefficients = b.input("coefficients", coefficient_type);
    let mut next = sampler.append_step(&mut b, input, out, noise, coefficients).unwrap();
    if mask.is_some() {
        let unchanged = b.input("unchanged", x.ty().clone());
        let kept = b.input("kept", flag_type);
        next = sampler.append_restore(&mut b, unchanged, next, kept).unwrap();
    }
    let after = b.finish(&[next]);

    let mut draws = 0;
    let mut draw = || {
        draws += 1;
        rows_of(&case.get(&format!("noise.{:03}", draws - 1)), rows)
    };
    for number in 0..sampler.n_steps() {
        let step = sampler.step(number);
        let coefficients = vector(&step.coefficients);
        let roles = mask.as_ref().map(|mask| sampler.frame_roles(number, mask).unwrap());
        let mut given = vec![("x", x.clone())];
        if let Some(roles) = &roles {
            given.push(("noise", draw()));
            given.push(("renoised", flags([rows, frames], &roles.renoised)));
            given.push(("coefficients", coefficients.clone()));
        }
        let [noised, model_x] = run(&before, given).try_into().unwrap();
        let noisy = roles.as_ref().map(|roles| roles.noisy.repeat(2));
        if let Some(noisy) = &noisy {
            let golden = case.get(&format!("model.{number:03}.x_mask"));
            let noisy: Vec<f64> = noisy.iter().map(|&flag| f64::from(u8::from(flag))).collect();
            assert_eq!(noisy, golden.values, "call {number}: x_mask");
        }
        let out = toy(&model_x, step.timestep, &y, noisy.as_deref());
        check_call(&case, number, step.timestep, &model_x, &out);
        let mut given =
            vec![("x", noised), ("out", out), ("noise", draw()), ("coefficients", coefficients)];
        if let Some(roles) = &roles {
            given.push(("unchanged", x));
            given.push(("kept", flags([rows, frames], &roles.kept)));
        }
        x = run(&after, given).remove(0);
    }
    assert!(!case.names().contains(&format!("noise.{draws:03}")), "a draw was left");
    let golden = case.get("out.samples");
    assert_close(x.as_floats(), &golden.values[..x.as_floats().len()], "samples");
}

fn guided(scale: f64, channels: Option<usize>) -> Option<Guidance> {
    Some(Guidance { scale, channels })
}

#[test]
fn sampling_of_1_0_guides_three_channels() {
    for (file, respacing, scale) in [("sample_cfg7", "10", 7.0), ("sample_cfg4_b1", "25", 4.0)] {
        let settings = settings(Precision::F64, respacing, guided(scale, Some(3)));
        check_sampling(&Sampling { folder: "iddpm_v1_0_0", file, settings, masked: false });
    }
}

#[test]
fn sampling_of_1_1_guides_all_channels() {
    for (file, respacing, scale) in [("sample_cfg7", "10", 7.0), ("sample_cfg4_b1", "25", 4.0)] {
        let settings = settings(Precision::F32, respacing, guided(scale, None));
        check_sampling(&Sampling { folder: "iddpm_v1_1_0", file, settings, masked: false });
    }
}

#[test]
fn masked_sampling_keeps_and_renoises_frames() {
    let settings = settings(Precision::F32, "10", guided(7.0, None));
    check_sampling(&Sampling {
        folder: "iddpm_v1_1_0",
        file: "sample_masked",
        settings,
        masked: true,
    });
}

#[test]
fn ddim_sampling_is_upstreams() {
    for (folder, precision) in [("iddpm_v1_0_0", Precision::F64), ("iddpm_v1_1_0", Precision::F32)]
    {
        for (file, eta) in [("ddim_eta0.0", 0.0), ("ddim_eta0.5", 0.5)] {
            let settings =
                IddpmSettings { update: Update::Ddim { eta }, ..settings(precision, "8", None) };
            check_sampling(&Sampling { folder, file, settings, masked: false });
        }
    }
}

#[test]
fn dpm_solver_sampling_is_upstreams() {
    let case = Case::open("dpm_solver/sample.safetensors");
    let config = json("dpm_solver/config.json");
    let steps = config["num_sampling_steps"].as_u64().unwrap() as usize;
    let scale = config["cfg_scale"].as_f64().unwrap();
    let sampler = DpmSolver::new(steps, guided(scale, None)).unwrap();
    let mut x = floats(&case.get("in.z"));
    let shape = x.shape().to_vec();
    let mut b = Builder::new("step");
    let input = b.input("x", x.ty().clone());
    let start = b.input("start", x.ty().clone());
    let out_shape = [2 * shape[0], 8, shape[2], shape[3], shape[4]];
    let out = b.input("out", TensorType::new(DType::F32, out_shape).unwrap());
    let count = TensorType::new(DType::F32, [DpmSolver::N_COEFFICIENTS]).unwrap();
    let coefficients = b.input("coefficients", count);
    let step = sampler.append_step(&mut b, input, start, out, coefficients).unwrap();
    let graph = b.finish(&[step.x, step.start]);
    let y = [means(&case.get("in.y_cond")), means(&case.get("in.y_null"))].concat();
    let mut start = x.clone();
    for number in 0..sampler.n_steps() {
        let step = sampler.step(number);
        let mut twice = shape.clone();
        twice[0] *= 2;
        let model_x =
            Tensor::floats(TensorType::new(DType::F32, twice).unwrap(), x.as_floats().repeat(2));
        let out = toy(&model_x, step.timestep, &y, None);
        // Upstream runs the null caption's rows first here; the halves of `x` are equal.
        let half = out.as_floats().len() / 2;
        let swapped = [&out.as_floats()[half..], &out.as_floats()[..half]].concat();
        let swapped = Tensor::floats(out.ty().clone(), swapped);
        check_call(&case, number, step.timestep, &model_x, &swapped);
        let given = vec![
            ("x", x),
            ("start", start),
            ("out", out),
            ("coefficients", vector(&step.coefficients)),
        ];
        [x, start] = run(&graph, given).try_into().unwrap();
    }
    assert_close(x.as_floats(), &case.get("out.samples").values, "samples");
}

/// One step of the process of 100 steps on the formula in upstream's terms; no golden file has it.
#[test]
fn one_step_has_the_published_mean() {
    let x: Vec<f32> = (0..32).map(|k| (0.37 * f64::from(k) + 0.1).sin() as f32).collect();
    let sampler = Iddpm::new(settings(Precision::F64, "100", None)).unwrap();
    let mut b = Builder::new("step");
    let ty = TensorType::new(DType::F32, [1, 4, 2, 2, 2]).unwrap();
    let out_ty = TensorType::new(DType::F32, [1, 8, 2, 2, 2]).unwrap();
    let input = b.input("x", ty.clone());
    let out = b.input("out", out_ty.clone());
    let noise = b.input("noise", ty.clone());
    let count = TensorType::new(DType::F32, [Iddpm::N_COEFFICIENTS]).unwrap();
    let coefficients = b.input("coefficients", count);
    let next = sampler.append_step(&mut b, input, out, noise, coefficients).unwrap();
    let graph = b.finish(&[next]);
    for (i, mean, log_variance) in [
        (99, [0.080_213, 0.435_052, 0.728_284, 0.920_223], Some(-1.702_767)),
        (50, [0.093_931, 0.446_761, 0.738_333, 0.929_185], Some(-2.255_683)),
        (1, [0.097_66, 0.443_183, 0.728_718, 0.915_618], Some(-7.589_97)),
        // The last step adds no noise.
        (0, [0.099_339, 0.450_644, 0.740_957, 0.930_984], None),
    ] {
        let step = sampler.step(99 - i);
        let shift = 1e-4 * step.timestep;
        let out: Vec<f32> =
            x.iter().map(|x| 0.5 * x + shift).chain(x.iter().map(|x| 0.8 * x.tanh())).collect();
        let sample = |noise: f32| {
            let given = vec![
                ("x", Tensor::f32(&[1, 4, 2, 2, 2], &x).unwrap()),
                ("out", Tensor::f32(&[1, 8, 2, 2, 2], &out).unwrap()),
                ("noise", Tensor::f32(&[1, 4, 2, 2, 2], &[noise; 32]).unwrap()),
                ("coefficients", vector(&step.coefficients)),
            ];
            run(&graph, given).remove(0).as_floats().to_vec()
        };
        let (still, noised) = (sample(0.0), sample(1.0));
        for (got, want) in still.iter().zip(mean) {
            assert!((got - want).abs() < 2e-5, "step {i}: {got}, expected {want}");
        }
        let deviation = log_variance.map_or(0.0, |v: f64| (0.5 * v).exp());
        assert!((noised[0] - still[0] - deviation).abs() < 2e-5, "step {i}");
    }
}

#[test]
fn sizes_are_upstreams() {
    for (file, release, count) in
        [("v1_1_0", Release::V1_1, 10), ("v1_2_0", Release::V1_2, RESOLUTION_NAMES.len())]
    {
        let golden = json(&format!("aspect_ratios/aspect_{file}.json"));
        let tables = golden["ASPECT_RATIOS"].as_object().unwrap();
        assert_eq!(tables.len(), count);
        let existing = RESOLUTION_NAMES.iter().filter(|name| resolution(name, release).is_ok());
        assert_eq!(existing.count(), count);
        for (name, table) in tables {
            let ours = resolution(name, release).unwrap();
            assert_eq!(ours.pixels as u64, table["num_pixels"].as_u64().unwrap(), "{name}");
            let sizes = table["ratios_h_w"].as_object().unwrap();
            assert_eq!(ours.sizes.len(), sizes.len(), "{name}");
            for &(key, height, width) in &ours.sizes {
                assert_eq!(sizes[key], serde_json::json!([height, width]), "{name} {key}");
            }
        }
        for row in golden["get_closest_ratio"].as_array().unwrap() {
            let number = |key: &str| row[key].as_u64().unwrap() as usize;
            let table = resolution(row["resolution"].as_str().unwrap(), release).unwrap();
            let key = closest_aspect(table, number("height"), number("width"));
            assert_eq!(key, row["ratio"].as_str().unwrap(), "{row}");
        }
    }
    let golden = json("aspect_ratios/aspect_v1_2_0.json");
    for row in golden["get_image_size"].as_array().unwrap() {
        let (name, aspect) = (row[0].as_str().unwrap(), row[1].as_str().unwrap());
        let ours = image_size(name, aspect, Release::V1_2).ok();
        let want: Option<(usize, usize)> = serde_json::from_value(row[2].clone()).unwrap();
        assert_eq!(ours, want, "{name} {aspect}");
    }
    for row in golden["get_num_frames"].as_array().unwrap() {
        let text = row[0].as_str().map_or_else(|| row[0].to_string(), str::to_string);
        assert_eq!(num_frames(&text).unwrap() as u64, row[1].as_u64().unwrap());
    }
}

/// Keys keep upstream's order, which decides ties; the file's order is read as text because a map
/// may sort it.
#[test]
fn table_order_is_upstreams() {
    let keys = |name: &str| -> Vec<&str> {
        let table = resolution(name, Release::V1_2).unwrap();
        table.sizes.iter().map(|row| row.0).collect()
    };
    assert_eq!(keys("4k")[5..9], ["0.54", "0.62", "0.56", "0.67"]);
    assert_eq!(keys("2k")[5..9], ["0.54", "0.56", "0.62", "0.67"]);
    for name in RESOLUTION_NAMES.iter().filter(|name| **name != "4k") {
        let numbers: Vec<f64> = keys(name).iter().map(|key| key.parse().unwrap()).collect();
        assert!(numbers.is_sorted(), "{name}");
    }
}

#[test]
fn given_frames_are_upstreams() {
    let cases = json("masks/mask_strategy_v1_1_0.json");
    let tensors = Case::open("masks/mask_strategy_v1_1_0.safetensors");
    for case in cases["apply"].as_array().unwrap() {
        let index = case["loop_i"].as_u64().unwrap() as usize;
        let tensor = |name: &str| tensors.get(&format!("l{index}.{name}"));
        let (before, after, masks) = (tensor("in.z"), tensor("out.z"), tensor("out.mask"));
        let [rows, channels, frames, ..] = before.shape[..] else { panic!("in.z is 5-D") };
        let plane = before.values.len() / (rows * channels * frames);
        for (row, text) in case["strategies"].as_array().unwrap().iter().enumerate() {
            let strategy = MaskStrategy::parse(text.as_str().unwrap_or_default()).unwrap();
            let references = [0, 1].map(|n| tensor(&format!("in.ref_{row}_{n}")));
            let lengths = references.iter().map(|reference| reference.shape[1]);
            let lengths: Vec<usize> = lengths.collect();
            let given = strategy.place(index, frames, &lengths).unwrap();
            for (t, given) in given.iter().enumerate() {
                let ratio = given.map_or(1.0, |given| f64::from(given.edit_ratio));
                assert_eq!(masks.values[row * frames + t], ratio, "{text}, frame {t}");
                for c in 0..channels {
                    let at = ((row * channels + c) * frames + t) * plane;
                    let from = match given {
                        None => &before.values[at..][..plane],
                        Some(given) => {
                            let length = lengths[given.reference];
                            let at = (c * length + given.frame) * plane;
                            &references[given.reference].values[at..][..plane]
                        }
                    };
                    assert_eq!(&after.values[at..][..plane], from, "{text}, frame {t}");
                }
            }
        }
    }
}
