//! A video of the embedded model from an engine file on the emulated device, prompt to frames: as close to
//! the CPU's video in f32 as the CPU's own in bf16 is, or nearly.
#![allow(clippy::unwrap_used, reason = "a failing test may panic anywhere")]

use std::num::NonZeroUsize;
use std::sync::Arc;

use aot::Builder;
use compiler::Plan;
use cuda::{Device, Emulated, EngineBackend};
use engine::Engine;
use kernels::cuda::Gpu;
use kernels::{Isa, Pool, Target};
use ops::DType;
use pipeline::{
    Conditioning, Model, Plans, Request, Sampler, Scheduler, SchedulerKind, Stage, Watch,
};
use runtime::{Backend, Cpu, StepTime};
use tests::relative_l2;
use tests::whole_run::embedded;

const GPU: Gpu = Gpu(90);
const SEED: u64 = 42;

/// Latents, pixels, and for each stage, where steps are timed, its plan and their times.
struct Video {
    latents: Vec<f64>,
    pixels: Vec<f64>,
    times: Vec<(Stage, Arc<Plan>, Vec<StepTime>)>,
}

fn request(dtype: DType) -> Request {
    Request {
        rows: 1,
        num_frames: 2,
        height: 64,
        width: 64,
        fps: 8.0,
        dtype,
        text_dtype: dtype,
        frame_mask: false,
    }
}

fn plans(model: &Model, scheduler: &Scheduler, dtype: DType, target: &Target) -> Plans {
    Plans::compile(model, scheduler, &request(dtype), target).unwrap()
}

/// Two denoising steps and the decoder.
fn sample(
    model: &Model,
    scheduler: &Scheduler,
    dtype: DType,
    target: &Target,
    backend: &dyn Backend,
) -> Video {
    let plans = plans(model, scheduler, dtype, target);
    let mut sampler = Sampler::new(model, scheduler.clone(), request(dtype), plans, backend);
    let prompt = "a zombie runs to the left on green grass";
    let mut times = vec![];
    let mut on_times = |stage, plan: &Arc<Plan>, of_steps: &[StepTime]| {
        times.push((stage, Arc::clone(plan), of_steps.to_vec()));
    };
    let watch = &mut Watch { on_times: Some(&mut on_times), ..Watch::default() };
    let features = sampler.encode_text(&[prompt], watch).unwrap();
    let mut noise = |draw: u64, out: &mut [f32]| diffusion::fill_normal(SEED, draw, 0, out);
    let keys = |draw: u64| vec![[SEED, draw, 0]];
    let mut conditioning =
        Conditioning { features: &features, noise: &mut noise, keys: Some(&keys), given: None };
    let latents = sampler.denoise(&mut conditioning, watch).unwrap();
    let mut pixels: Vec<f64> = vec![];
    sampler
        .decode::<pipeline::Error>(&latents, watch, |_, _, frame| {
            pixels.extend(frame.iter().map(|&x| f64::from(x)));
            Ok(())
        })
        .unwrap();
    Video { latents: latents.iter().map(|&x| f64::from(x)).collect(), pixels, times }
}

#[test]
fn an_engine_makes_the_video_of_the_cpu_within_what_bf16_rounds() {
    let model = embedded();
    let steps = |n| Scheduler::new(SchedulerKind::Iddpm, n, 2.0, None, &model.transformer).unwrap();
    let on_gpu = cuda_tests::target(GPU);
    let mut builder = Builder::new();
    // A step's plan does not depend on how many there are.
    let plans = plans(&model, &steps(2), DType::Bf16, &on_gpu);
    for (name, plan) in
        [("text", &plans.text), ("denoise", &plans.denoise), ("decode", &plans.decode)]
    {
        builder.add(name, plan).unwrap();
    }
    let about = ("tests".to_owned(), model.name.clone(), DType::Bf16);
    let engine = builder.build(about, cuda_tests::nvrtc(), None, 2, &|_| {}).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.engine");
    engine.save(&path).unwrap();

    let engine = Arc::new(Engine::open(&path).unwrap());
    let open = || {
        let threads = NonZeroUsize::new(2).unwrap();
        let options = emulator::Options { threads, ..emulator::Options::default() };
        let device = Emulated::new(GPU.code_name().parse().unwrap(), options);
        Ok(Box::new(device) as Box<dyn Device>)
    };
    let emulated = EngineBackend::new(Arc::clone(&engine), Box::new(open));
    let target = tests::compiled::target(Isa::detect(), 2);
    let cpu = Cpu::new(Arc::new(Pool::new(2).unwrap()));
    // Fewer steps make much of rounding: the first divides by the small share of the signal. After 24, a
    // video is one to four times as far from f32 as its model, by its noise.
    const N_STEPS: usize = 24;
    const MOST: f64 = 2.5e-2;
    let scheduler = steps(N_STEPS);
    let found = sample(&model, &scheduler, DType::Bf16, &on_gpu, &emulated);
    let [exact, rounded] =
        [DType::F32, DType::Bf16].map(|dtype| sample(&model, &scheduler, dtype, &target, &cpu));
    let check = |what: &str, found: &[f64], rounded: &[f64], exact: &[f64]| {
        let [ours, cpus] = [found, rounded].map(|values| relative_l2(values, exact));
        println!("{what}: {ours:.2e} from f32, the CPU's bf16 {cpus:.2e}");
        assert!(ours < MOST.min(2.0 * cpus), "{what}: {ours}, the CPU's {cpus}");
    };
    check("latents", &found.latents, &rounded.latents, &exact.latents);
    check("pixels", &found.pixels, &rounded.pixels, &exact.pixels);
    assert!(found.times.is_empty(), "steps are timed where it is asked for");
    assert!(emulated.take_notes().is_empty(), "a device without graphs is nothing to tell");

    let timed = EngineBackend::new(engine, Box::new(open)).with_step_times();
    let again = sample(&model, &steps(2), DType::Bf16, &on_gpu, &timed);
    let untimed = sample(&model, &steps(2), DType::Bf16, &on_gpu, &emulated);
    assert!(again.latents == untimed.latents && again.pixels == untimed.pixels);
    let stages: Vec<Stage> = again.times.iter().map(|(stage, ..)| *stage).collect();
    assert_eq!(stages, [Stage::Text, Stage::Denoise, Stage::Decode]);
    for ((stage, plan, times), n_runs) in again.times.iter().zip([1, 2, 2]) {
        assert_eq!(times.len(), plan.steps.len(), "{stage:?}");
        let is_timed = |time: &StepTime| time.runs == n_runs && time.seconds > 0.0;
        assert!(times.iter().all(is_timed), "{stage:?}: {times:?}");
    }
}
