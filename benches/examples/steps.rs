//! The slowest steps of a row, on made-up weights and inputs: `steps ROW TYPE [THREADS] [COUNT] [MIB]`, with the most
//! memory of a step that trains; `--plan` prints its plan instead.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "it is a program")]

use std::borrow::Cow;
use std::sync::Arc;

use kernels::{Isa, Pool, Target};
use ops::{DType, Tensor, TensorType};
use runtime::{Session, WeightSource, WeightStore};

fn made_up(ty: &TensorType, seed: u64, scale: f32) -> Vec<u8> {
    if !ty.dtype().is_float() {
        return Tensor::ints(ty.clone(), vec![1; ty.count()]).to_bytes();
    }
    let mut values = vec![0f32; ty.count()];
    diffusion::fill_normal(3, seed, 0, &mut values);
    let values = values.iter().map(|x| f64::from(x * scale)).collect();
    Tensor::floats(ty.clone(), values).rounded().to_bytes()
}

struct Noise(Vec<(String, TensorType)>);

impl WeightSource for Noise {
    fn tensor(&self, name: &str) -> Result<Option<(TensorType, Cow<'_, [u8]>)>, String> {
        let found = self.0.iter().enumerate().find(|(_, (known, _))| known == name);
        Ok(found.map(|(i, (_, ty))| (ty.clone(), Cow::Owned(made_up(ty, i as u64, 0.02)))))
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let work = benches::work::find(&args[0]).unwrap();
    let dtype = if args[1] == "bf16" { DType::Bf16 } else { DType::F32 };
    let threads = args.get(2).map_or(2, |n| n.parse().unwrap());
    let count: usize = args.get(3).map_or(45, |n| n.parse().unwrap());
    let target = Target::of_cpu(Isa::detect(), threads);
    let graph = work.graph(dtype).unwrap();
    let params = graph.params().map(|(value, name)| (name.to_string(), graph.ty(value).clone()));
    let store = WeightStore::new(Noise(params.collect()));
    let plan = Arc::new(if work.trains() {
        let memory = args.get(4).and_then(|mib| mib.parse::<usize>().ok()).map(|mib| mib << 20);
        let training = compiler::compile_training(graph, &target, memory).unwrap();
        println!("{} FLOPs more than without a limit", training.added_flops);
        training.plan
    } else {
        compiler::compile(graph, &target).unwrap()
    });
    if std::env::args().any(|arg| arg == "--plan") {
        println!("{plan}");
        return;
    }
    let pool = Arc::new(Pool::new(threads).unwrap());
    let mut session = Session::new(Arc::clone(&plan), &store, pool).unwrap();
    let inputs: Vec<(String, Vec<u8>)> = plan
        .inputs
        .iter()
        .enumerate()
        .map(|(i, port)| (port.name.to_string(), made_up(&port.ty, 1000 + i as u64, 1.0)))
        .collect();
    let inputs: Vec<(&str, &[u8])> =
        inputs.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
    session.run(&inputs).unwrap();
    let warm: Vec<f64> = session.times().iter().map(|time| time.seconds).collect();
    let runs = 3;
    for _ in 0..runs {
        session.run(&inputs).unwrap();
    }
    let works = plan.works();
    let mut rows: Vec<(f64, usize)> = session
        .times()
        .iter()
        .zip(&warm)
        .map(|(time, warm)| (time.seconds - warm) / f64::from(runs))
        .zip(0..)
        .collect();
    let total: f64 = rows.iter().map(|row| row.0).sum();
    let arena = plan.arena_bytes as f64 / 1048576.0;
    println!("{:.1} ms in {} steps, arena {arena:.1} MiB", total * 1e3, rows.len());
    rows.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (seconds, index) in rows.into_iter().take(count) {
        let (step, work) = (&plan.steps[index], &works[index]);
        let node = plan.graph.node(step.value);
        let operands: Vec<String> =
            step.operands.iter().map(|operand| operand.layout.to_string()).collect();
        println!(
            "{index:>4} {:>8.3} ms {:>6.0} GFLOP/s {:>6.1} GB/s  {} {}  ({}) -> {}",
            seconds * 1e3,
            work.flops() as f64 / seconds / 1e9,
            work.bytes() as f64 / seconds / 1e9,
            compiler::describe(step.kernel.def()),
            node.scope,
            operands.join(", "),
            step.result_layout
        );
    }
}
