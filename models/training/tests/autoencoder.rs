//! Training of autoencoders: the loss is its formula, its gradients are differences, a batch is learned, and latents are
//! brought to one scale.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "not every suite needs every helper")]

mod tiny;

use models::config::AutoencoderKl;
use models::vae::{self, FrameBucket, LATENT_SCALE};
use ops::{DType, Rounding, Tensor, eval};
use runtime::WeightSource;
use serde_json::json;
use tiny::{Tensors, given, run};
use training::{
    Autoencoder, Initial, LatentStatistics, Objective, Options, Program, State, StateKind,
    gradients, training_step,
};

/// Truncation is about the square of the step, rounding 1e-16 over it.
const STEP: f64 = 1e-5;

/// Two levels of 4 and 8 channels.
fn autoencoder() -> Autoencoder {
    let file = json!({
        "block_out_channels": [4, 8], "norm_num_groups": 2, "latent_channels": 2,
    });
    let config = AutoencoderKl::from_json(&file).unwrap();
    Autoencoder { config, l1: 0.7, mse: 1.3, kl: 0.2, initial_std: 1.0, salient: 2.0 }
}

/// Two images of 8x6.
fn bucket() -> FrameBucket {
    FrameBucket { dtype: DType::F32, frames: 2, height: 8, width: 6 }
}

fn options() -> Options {
    Options { ema_decay: Some(0.9), ..Options::default() }
}

/// The parameters among `given` under their own names.
fn weights(given: &Tensors) -> Tensors {
    let masters = given.iter().filter_map(|(name, tensor)| {
        Some((name.strip_prefix("master.")?.to_string(), tensor.clone()))
    });
    masters.collect()
}

/// Posterior's mean and logarithm of the variance of `x`, by the encoder of sampling.
fn encoded(config: &AutoencoderKl, weights: &Tensors, x: &Tensor) -> [Tensor; 2] {
    let graph = vae::encoder_graph(config, &bucket()).unwrap();
    let mut given = weights.clone();
    given.insert("x".into(), x.clone());
    let mut outputs = eval(&graph, &given, Rounding::Exact).unwrap();
    let logvar = outputs.remove(2);
    [outputs.remove(1), logvar]
}

/// Images of `z`, by the decoder of sampling.
fn decoded(config: &AutoencoderKl, weights: &Tensors, z: Tensor) -> Tensor {
    let of_latents = FrameBucket { height: 4, width: 3, ..bucket() };
    let graph = vae::decoder_graph(config, &of_latents).unwrap();
    let mut given = weights.clone();
    given.insert("z".into(), z);
    eval(&graph, &given, Rounding::Exact).unwrap().remove(0)
}

/// Element by element of `a` and `b`.
fn zipped(a: &Tensor, b: &Tensor, f: impl Fn(f64, f64) -> f64) -> Tensor {
    let pairs = a.as_floats().iter().zip(b.as_floats());
    Tensor::floats(a.ty().clone(), pairs.map(|(&a, &b)| f(a, b)).collect())
}

#[test]
fn the_loss_is_its_formula_on_what_sampling_computes() {
    let objective = autoencoder();
    let program = gradients(&objective, &bucket(), &options()).unwrap();
    let given = given(&program.graph);
    let found = eval(&program.graph, &given, Rounding::Exact).unwrap();

    let (config, weights) = (&objective.config, weights(&given));
    let [mean, logvar] = encoded(config, &weights, &given["x"]);
    let deviation = zipped(&logvar, &given["noise"], |logvar, noise| (logvar / 2.0).exp() * noise);
    let images = decoded(config, &weights, zipped(&mean, &deviation, |a, b| a + b));
    let errors = zipped(&images, &given["x"], |a, b| 0.7 * (a - b).abs() + 1.3 * (a - b).powi(2));
    let divergence = zipped(&mean, &logvar, |m, l| 0.5 * (m * m + l.exp() - l - 1.0));
    let (elements, pixels, latents) = (3 * 8 * 6, 8 * 6, 2 * 4 * 3);
    let mut sum = 0.0;
    for row in 0..2 {
        let weight = |i: usize| given["weight"].as_floats()[row * pixels + i % pixels];
        let errors = &errors.as_floats()[row * elements..][..elements];
        let error: f64 = errors.iter().enumerate().map(|(i, e)| weight(i) * e).sum();
        let divergence: f64 = divergence.as_floats()[row * latents..][..latents].iter().sum();
        let expected = (error + 0.2 * divergence) / elements as f64;
        let found = found[program.row_losses.unwrap()].as_floats()[row];
        assert!((found / expected - 1.0).abs() < 1e-12, "row {row}: {found}, expected {expected}");
        sum += expected;
    }
    assert!((found[0].as_floats()[0] / (sum / 2.0) - 1.0).abs() < 1e-12);
}

/// Every parameter, each moved along a direction of its own.
#[test]
fn gradients_are_differences() {
    let program = gradients(&autoencoder(), &bucket(), &options()).unwrap();
    let given = given(&program.graph);
    let found = eval(&program.graph, &given, Rounding::Exact).unwrap();
    let at = program.gradients.unwrap();
    let loss = program.graph.outputs[0];
    let mut forward = program.graph.clone();
    forward.nodes.truncate(loss.index() + 1);
    forward.outputs = vec![loss];

    assert!(program.trained.len() > 70, "{} parameters", program.trained.len());
    let mut worst: (f64, &str) = (0.0, "");
    for ((name, ty), gradient) in program.trained.iter().zip(&found[at..]) {
        let input = StateKind::Master.input(name);
        let direction: Vec<f64> = (0..ty.count()).map(|i| (1.0 + 1.9 * i as f64).cos()).collect();
        let loss_at = |step: f64| {
            let moved = given[&input].as_floats().iter().zip(&direction).map(|(x, d)| x + step * d);
            let mut given = given.clone();
            given.insert(input.clone(), Tensor::floats(ty.clone(), moved.collect()));
            eval(&forward, &given, Rounding::Exact).unwrap()[0].as_floats()[0]
        };
        let difference = (loss_at(STEP) - loss_at(-STEP)) / (2.0 * STEP);
        let product: f64 = gradient.as_floats().iter().zip(&direction).map(|(g, d)| g * d).sum();
        // A direction may be nearly orthogonal to a gradient: its norm is the scale.
        let norm: f64 = gradient.as_floats().iter().map(|g| g * g).sum::<f64>().sqrt();
        let error = (product - difference).abs() / norm.max(1e-3);
        if error > worst.0 {
            worst = (error, name);
        }
    }
    assert!(worst.0 < 1e-6, "{} is off by {:e}", worst.1, worst.0);
}

/// Masters after `steps` updates on one batch, and the loss of each.
fn learned(program: &Program, given: &mut Tensors, steps: u64) -> Vec<f64> {
    let optimizer = options().optimizer;
    let mut losses = vec![];
    for step in 1..=steps {
        let coefficients = optimizer.coefficients(1e-2, step);
        given.insert("optimizer".into(), Tensor::f32(&[3], &coefficients).unwrap());
        let outputs = run(program, given);
        losses.push(outputs[0].as_floats()[0]);
        for carry in &program.carries {
            given.insert(carry.input(), outputs[carry.output].clone());
        }
    }
    losses
}

#[test]
fn a_batch_is_learned_from_nothing() {
    let objective = Autoencoder { kl: 1e-6, ..autoencoder() };
    let program = training_step(&objective, &bucket(), &options()).unwrap();
    let mut given = given(&program.graph);
    let initial = Initial::new(&objective, &options(), 3).unwrap();
    let state = State::new(&objective, &options(), &initial).unwrap();
    for (kind, name, values) in state.tensors() {
        let shape = given[&kind.input(name)].shape().to_vec();
        given.insert(kind.input(name), Tensor::f32(&shape, values).unwrap());
    }
    let ones = given["weight"].ty().clone();
    given.insert("weight".into(), Tensor::floats(ones.clone(), vec![1.0; ones.count()]));
    let losses = learned(&program, &mut given, 12);
    assert!(losses[11] < 0.7 * losses[0], "{losses:?}");
}

#[test]
fn folded_latents_have_one_scale_and_decode_to_the_same_images() {
    let objective = autoencoder();
    let config = &objective.config;
    let program = gradients(&objective, &bucket(), &options()).unwrap();
    let given = given(&program.graph);
    let mut weights = weights(&given);
    let [mean, logvar] = encoded(config, &weights, &given["x"]);
    let mut statistics = LatentStatistics::new(2);
    statistics.add(&mean.to_f32(), &logvar.to_f32(), 2).unwrap();
    let narrow: Vec<(String, Vec<f32>)> =
        weights.iter().map(|(name, tensor)| (name.clone(), tensor.to_f32())).collect();
    let find = |name: &str| {
        narrow.iter().find(|(known, _)| known == name).map(|(_, values)| values.as_slice())
    };
    let folded = statistics.folded(config, find).unwrap();
    let images = decoded(config, &weights, mean);
    for (name, values) in folded {
        let shape = weights[name].shape().to_vec();
        weights.insert(name.into(), Tensor::f32(&shape, &values).unwrap());
    }

    let [mean, logvar] = encoded(config, &weights, &given["x"]);
    let mut after = LatentStatistics::new(2);
    after.add(&mean.to_f32(), &logvar.to_f32(), 2).unwrap();
    // Weights are f32.
    for (mean, std) in after.means().into_iter().zip(after.deviations()) {
        assert!(mean.abs() * LATENT_SCALE < 1e-5, "{mean}");
        assert!((std * LATENT_SCALE - 1.0).abs() < 1e-5, "{std}");
    }
    let again = decoded(config, &weights, mean);
    let difference = zipped(&again, &images, |a, b| (a - b).abs());
    assert!(difference.as_floats().iter().all(|error| *error < 1e-4), "{difference:?}");

    let error =
        |statistics: &LatentStatistics| statistics.folded(config, find).unwrap_err().to_string();
    assert!(error(&LatentStatistics::new(2)).contains("channel 0"));
    assert!(error(&LatentStatistics::new(4)).contains("4 channels"));
    let error = statistics.folded(config, |_| None).unwrap_err().to_string();
    assert!(error.contains("`quant_conv.weight`: missing"), "{error}");
    let error = statistics.add(&[0.0; 6], &[0.0; 5], 1).unwrap_err().to_string();
    assert!(error.contains("6 means and 5 variances"), "{error}");
}

#[test]
fn what_is_no_autoencoder_is_refused() {
    let error = |objective: Autoencoder, bucket: FrameBucket| {
        gradients(&objective, &bucket, &options()).unwrap_err().to_string()
    };
    let good = autoencoder;
    for (objective, bucket, expected) in [
        (Autoencoder { kl: -1.0, ..good() }, bucket(), "`loss.kl`: -1"),
        (Autoencoder { initial_std: 0.0, ..good() }, bucket(), "`loss.initial_std`: 0"),
        (Autoencoder { salient: f64::NAN, ..good() }, bucket(), "`loss.salient`: NaN"),
        (Autoencoder { l1: 0.0, mse: 0.0, ..good() }, bucket(), "nothing tells images apart"),
        (good(), FrameBucket { height: 7, ..bucket() }, "images of 7x6, expected multiples of 2"),
        (good(), FrameBucket { frames: 0, ..bucket() }, "empty axis"),
    ] {
        let error = error(objective, bucket);
        assert!(error.contains(expected), "{error}");
    }
}

/// Draws are of the right size, and depend on seed and name alone.
#[test]
fn convolutions_begin_as_they_do_upstream() {
    let objective = Autoencoder { config: wide(), ..autoencoder() };
    let initial = Initial::new(&objective, &options(), 5).unwrap();
    let values = |name: &str| -> Vec<f32> {
        let (ty, bytes) = initial.tensor(name).unwrap().unwrap();
        Tensor::from_bytes(ty, &bytes).unwrap().to_f32()
    };
    assert!(initial.tensor("decoder.conv_in.scale").unwrap().is_none());
    let weight = values("encoder.mid_block.resnets.0.conv1.weight");
    // 32 channels of 3x3: uniform to 1/sqrt(288).
    let bound = 288f32.powf(-0.5);
    let largest = weight.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    assert!(largest < bound && largest > 0.99 * bound, "{largest}, {bound}");
    let mean = weight.iter().sum::<f32>() / weight.len() as f32;
    // Five standard errors of 9216 draws.
    assert!(mean.abs() < 5.0 * bound / 3f32.sqrt() / 96.0, "{mean}");
    let bias = values("encoder.mid_block.resnets.0.conv1.bias");
    assert!(bias.iter().all(|x| x.abs() < bound) && bias.iter().any(|x| x.abs() > bound / 2.0));
    assert!(values("encoder.mid_block.attentions.0.group_norm.weight").iter().all(|x| *x == 1.0));
    assert!(values("decoder.conv_norm_out.bias").iter().all(|x| *x == 0.0));
    assert_ne!(weight, values("encoder.mid_block.resnets.1.conv1.weight"));
    let other = Initial::new(&objective, &options(), 6).unwrap();
    let (_, bytes) = other.tensor("encoder.mid_block.resnets.0.conv1.weight").unwrap().unwrap();
    assert_ne!(&*bytes, bytemuck_bytes(&weight));
    let names: Vec<String> =
        objective.parameters(&options()).unwrap().into_iter().map(|param| param.name).collect();
    assert!(names.iter().all(|name| initial.tensor(name).unwrap().is_some()));
}

fn wide() -> AutoencoderKl {
    let file = json!({
        "block_out_channels": [16, 32], "norm_num_groups": 8,
    });
    AutoencoderKl::from_json(&file).unwrap()
}

fn bytemuck_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}
