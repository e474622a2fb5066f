//! Where the time of a step's forward and backward pass goes: `step_times RECIPE f32|bf16 ROWS FRAMES HEIGHT WIDTH [N]`
//! with the size of latents (of images, for an autoencoder), runs the recipe's model on made-up numbers and prints time
//! by kernel and the `N` longest steps.
#![allow(clippy::unwrap_used, reason = "an example ends where something is wrong")]
#![allow(clippy::print_stdout, reason = "an example prints what it finds")]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use kernels::{Isa, Pool, Target};
use models::Bucket;
use models::vae::FrameBucket;
use ops::{DType, Op, TensorType};
use runtime::{Session, WeightSource, WeightStore};
use training::{Objective as _, Subject, find, gradients};

/// Frozen tables are zeros; all other weights are trained, and so inputs.
struct Zeros(Vec<(String, Vec<usize>)>);

impl WeightSource for Zeros {
    fn tensor(&self, name: &str) -> Result<Option<(TensorType, Cow<'_, [u8]>)>, String> {
        let shape = self.0.iter().find(|(known, _)| known == name).map(|(_, shape)| shape);
        let ty = shape.map(|shape| TensorType::new(DType::F32, shape.clone()));
        let ty = ty.transpose().map_err(|error| error.to_string())?;
        Ok(ty.map(|ty| {
            let bytes = vec![0; ty.bytes()];
            (ty, Cow::Owned(bytes))
        }))
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let recipe = find(&args[0]).unwrap();
    let dtype = if args[1] == "bf16" { DType::Bf16 } else { DType::F32 };
    let numbers: Vec<usize> = args[2..].iter().map(|arg| arg.parse().expect("a number")).collect();
    let [rows, t, h, w] = numbers[..4].try_into().unwrap();
    let longest = numbers.get(4).copied().unwrap_or(40);
    let options = recipe.options().unwrap();
    let (program, params) = match recipe.subject().unwrap() {
        Subject::Transformer(model) => {
            let pixels = [8.0 * h as f64, 8.0 * w as f64];
            let tokens = model.common().model_max_length;
            let bucket = Bucket { dtype, ..Bucket::new(rows, [t, h, w], pixels, tokens) };
            (gradients(&model, &bucket, &options), model.parameters(&options))
        }
        Subject::Autoencoder(model) => {
            let bucket = FrameBucket { dtype, frames: rows * t, height: h, width: w };
            (gradients(&model, &bucket, &options), model.parameters(&options))
        }
    };
    let (program, params) = (program.unwrap(), params.unwrap());
    let params = params.into_iter().map(|param| (param.name, param.shape)).collect();
    let threads = std::thread::available_parallelism().unwrap().get();
    let target = Target::of_cpu(Isa::detect(), threads);
    let plan = Arc::new(compiler::compile_training(program.graph, &target, None).unwrap().plan);
    println!("{} steps, {:.1} MiB", plan.steps.len(), plan.arena_bytes as f64 / 1048576.0);
    let store = WeightStore::new(Zeros(params));
    let pool = Arc::new(Pool::new(threads).unwrap());
    let mut session = Session::new(Arc::clone(&plan), &store, pool).unwrap();
    let inputs: Vec<(String, Vec<u8>)> = plan
        .inputs
        .iter()
        .enumerate()
        .map(|(draw, port)| {
            let mut values = vec![0f32; port.ty.bytes().div_ceil(4)];
            diffusion::fill_normal(1, draw as u64, 0, &mut values);
            values.iter_mut().for_each(|x| *x *= 0.05);
            let mut bytes: Vec<u8> = match port.ty.dtype() {
                DType::F32 => bytemuck::cast_slice(&values).to_vec(),
                _ => vec![1; port.ty.bytes()],
            };
            if port.ty.dtype() == DType::I64 {
                bytes.iter_mut().enumerate().for_each(|(i, byte)| *byte = u8::from(i % 8 == 0));
            }
            (port.name.to_string(), bytes)
        })
        .collect();
    let inputs: Vec<(&str, &[u8])> = inputs.iter().map(|(name, b)| (&**name, &b[..])).collect();
    session.run(&inputs).unwrap();
    let first: Vec<f64> = session.times().iter().map(|time| time.seconds).collect();
    session.run(&inputs).unwrap();
    // The second run alone.
    let times: Vec<f64> =
        session.times().iter().zip(&first).map(|(time, first)| time.seconds - first).collect();
    let works = plan.works();
    let mut by_kernel: BTreeMap<&str, (usize, f64, u64)> = BTreeMap::new();
    let mut order: Vec<usize> = (0..times.len()).collect();
    order.sort_by(|&a, &b| times[b].total_cmp(&times[a]));
    for (work, time) in works.iter().zip(&times) {
        let entry = by_kernel.entry(work.kernel).or_default();
        *entry = (entry.0 + 1, entry.1 + time, entry.2 + work.core_flops);
    }
    let total: f64 = times.iter().sum();
    println!("{total:.3} s");
    for (kernel, (count, time, flops)) in by_kernel {
        let speed = flops as f64 / time / 1e9;
        println!("{kernel:<16} {count:>5} {:>9.1} ms {speed:>7.1} GFLOP/s", time * 1e3);
    }
    for &at in order.iter().take(longest) {
        let (work, step) = (&works[at], &plan.steps[at]);
        let node = plan.graph.node(step.value);
        let speed = work.core_flops as f64 / times[at] / 1e9;
        let bytes = (work.bytes_read + work.bytes_written) as f64 / times[at] / 1e9;
        println!(
            "{at:>5} {:>8.2} ms {speed:>6.1} GFLOP/s {bytes:>6.1} GB/s {} -> {} {}",
            times[at] * 1e3,
            work.kernel,
            node.ty,
            node.scope
        );
        if let Some(Op::Fused(fused)) = plan.graph.op(step.value) {
            let body = fused.body();
            let names = body.values().filter_map(|value| Some(body.op(value)?.def().name()));
            println!("      {}", names.collect::<Vec<_>>().join(" "));
        }
        let types: Vec<String> =
            node.args.iter().map(|&arg| plan.graph.ty(arg).to_string()).collect();
        println!("      {}", types.join(" "));
    }
}
