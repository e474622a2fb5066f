//! Gradients against central differences, without rounding.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "not every suite needs every helper")]

mod tiny;

use diffusion::schedule::Precision;
use ops::{Builder, DType, Rounding, Tensor, TensorType, ValueId, append_gradients, eval};
use training::{Iddpm, Sample, Weighting};

/// Truncation is about the square of the step, rounding 1e-16 over it.
const STEP: f64 = 1e-5;
const TOLERANCE: f64 = 1e-7;
/// A whole model rounds more often than a loss: its step is wider, and the truncation taken out.
const WIDE_STEP: f64 = 1e-3;

/// Mean square of the model's output: every parameter of two blocks, each moved along a direction of its
/// own, and the latents.
#[test]
fn gradients_of_two_blocks_are_differences() {
    let graph = tiny::model().graph(&tiny::bucket()).unwrap();
    let given = tiny::given(&graph);
    let out = graph.outputs[0];
    let names: Vec<(String, ValueId)> = (graph.params().chain(graph.inputs()))
        .filter(|(value, _)| graph.ty(*value).dtype() == DType::F32)
        .map(|(value, name)| (name.to_string(), value))
        .collect();
    let mut b = Builder::extend(graph);
    let square = b.square(out).unwrap();
    let loss = b.reduce_mean(square, &[0, 1, 2, 3, 4]).unwrap();
    let one = b.scalar_f32(1.0, 5).unwrap();
    let wrt: Vec<ValueId> = names.iter().map(|(_, value)| *value).collect();
    let gradients = append_gradients(&mut b, loss, one, &wrt).unwrap();
    let mut outputs = vec![loss];
    outputs.extend(gradients.into_iter().map(|gradient| gradient.expect("all have influence")));
    let backward = b.clone().finish(&outputs);
    let forward = b.finish(&[loss]);
    let gradients = eval(&backward, &given, Rounding::Exact).unwrap();

    assert!(names.len() > 70, "{} parameters", names.len());
    let mut worst: (f64, &str) = (0.0, "");
    for ((name, _), gradient) in names.iter().zip(&gradients[1..]) {
        let tensor = &given[name];
        let count = tensor.ty().count();
        // Of unit length, on the average.
        let scale = (2.0 / count as f64).sqrt();
        let direction: Vec<f64> =
            (0..count).map(|i| scale * (1.0 + 1.9 * i as f64).cos()).collect();
        let at = |step: f64| {
            let moved = tensor.as_floats().iter().zip(&direction).map(|(x, d)| x + step * d);
            let mut given = given.clone();
            given.insert(name.clone(), Tensor::floats(tensor.ty().clone(), moved.collect()));
            eval(&forward, &given, Rounding::Exact).unwrap()[0].as_floats()[0]
        };
        let over = |step: f64| (at(step) - at(-step)) / (2.0 * step);
        // Without the term of the step's square (Richardson).
        let difference = (4.0 * over(WIDE_STEP / 2.0) - over(WIDE_STEP)) / 3.0;
        let product: f64 = gradient.as_floats().iter().zip(&direction).map(|(g, d)| g * d).sum();
        // A direction may be nearly orthogonal to a gradient: its norm is the scale. Some are 0, as that
        // of a bias of all keys.
        let norm: f64 = gradient.as_floats().iter().map(|g| g * g).sum::<f64>().sqrt();
        let error = (product - difference).abs() / norm.max(1e-3);
        if error > worst.0 {
            worst = (error, name);
        }
    }
    assert!(worst.0 < TOLERANCE, "{} is off by {:e}", worst.1, worst.0);
}

/// The loss with respect to the model's output: of the predicted noise only the squared error, of the
/// variance the bound, also at timestep 0 and beyond the outer bins.
#[test]
fn gradients_of_the_loss_are_differences() {
    for weighting in [Weighting::Uniform, Weighting::Speed, Weighting::MinSnr { gamma: 0.5 }] {
        let process = Iddpm::new(Precision::F64, weighting).unwrap();
        let mut b = Builder::new("loss");
        let ty = |shape: &[usize]| TensorType::new(DType::F32, shape).unwrap();
        let latent = [3, 2, 3, 1, 2];
        let mask = TensorType::new(DType::Bool, [3, 3]).unwrap();
        let sample = Sample {
            latents: b.input("x", ty(&latent)),
            noise: b.input("noise", ty(&latent)),
            timesteps: b.input("timestep", TensorType::new(DType::I64, [3]).unwrap()),
            frame_mask: Some(b.input("x_mask", mask)),
        };
        let out = b.input("out", ty(&[3, 4, 3, 1, 2]));
        let noised = process.append_noised(&mut b, &sample).unwrap();
        let losses = process.append_losses(&mut b, &sample, noised, out).unwrap();
        let seed = b.constant(Tensor::f32(&[3], &[1.0; 3]).unwrap());
        let gradient = append_gradients(&mut b, losses.total, seed, &[out]).unwrap()[0].unwrap();
        let graph = b.finish(&[gradient, losses.mse, losses.bound]);

        let mut given = tiny::given(&graph);
        // Latents of row 0 reach into the outer bins; at timestep 0 the prediction is near them, so that
        // no probability is at its least.
        let wide = given["x"].as_floats().iter().map(|x| 3.0 * x).collect();
        given.insert("x".into(), Tensor::floats(ty(&latent), wide).rounded());
        assert!(given["x"].as_floats()[..6].iter().any(|x| x.abs() > 0.999), "{:?}", given["x"]);
        let near: Vec<f64> = (given["noise"].as_floats()[..12].iter().map(|noise| noise + 0.1))
            .chain((12..72).map(|i| 0.5 * (0.9 * f64::from(i)).sin()))
            .collect();
        let out = Tensor::floats(ty(&[3, 4, 3, 1, 2]), near);
        given.insert("out".into(), out.clone());
        let found = eval(&graph, &given, Rounding::Exact).unwrap()[0].clone();
        for i in 0..72 {
            let is_noise = i / 6 % 4 < 2;
            let sum_at = |step: f64| -> f64 {
                let mut moved = out.as_floats().to_vec();
                moved[i] += step;
                let mut given = given.clone();
                given.insert("out".into(), Tensor::floats(out.ty().clone(), moved));
                let values = eval(&graph, &given, Rounding::Exact).unwrap();
                values[if is_noise { 1 } else { 2 }].as_floats().iter().sum()
            };
            let difference = (sum_at(STEP) - sum_at(-STEP)) / (2.0 * STEP);
            let gradient = found.as_floats()[i];
            let error = (gradient - difference).abs() / difference.abs().max(1e-2);
            assert!(error < 1e-6, "{weighting:?} {i}: {gradient}, difference {difference}");
        }
        let moved = found.as_floats().iter().filter(|g| **g != 0.0).count();
        // Frame 1 of each row of three is clean.
        assert_eq!(moved, 72 / 3 * 2, "{weighting:?}");
    }
}
