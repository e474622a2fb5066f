//! A video of the embedded model from an engine file on the emulated device: prompt to frames, as the CPU
//! makes it in the same type.
#![allow(clippy::unwrap_used, reason = "a failing test may panic anywhere")]

use std::num::NonZeroUsize;
use std::sync::Arc;

use aot::Builder;
use cuda::{Device, Emulated, EngineBackend};
use engine::Engine;
use kernels::cuda::Gpu;
use kernels::{Isa, Pool, Target};
use ops::DType;
use pipeline::{Conditioning, Model, Plans, Request, Sampler, Scheduler, SchedulerKind, Watch};
use runtime::{Backend, Cpu};
use tests::Rng;
use tests::whole_run::embedded;

const GPU: Gpu = Gpu(90);

/// Latents and pixels.
struct Video {
    latents: Vec<f64>,
    pixels: Vec<f64>,
}

fn request() -> Request {
    Request {
        rows: 1,
        num_frames: 2,
        height: 64,
        width: 64,
        fps: 8.0,
        dtype: DType::Bf16,
        text_dtype: DType::Bf16,
        frame_mask: false,
    }
}

fn plans(model: &Model, scheduler: &Scheduler, target: &Target) -> Plans {
    Plans::compile(model, scheduler, &request(), target).unwrap()
}

/// Two denoising steps and the decoder.
fn sample(model: &Model, scheduler: &Scheduler, target: &Target, backend: &dyn Backend) -> Video {
    let plans = plans(model, scheduler, target);
    let mut sampler = Sampler::new(model, scheduler.clone(), request(), plans, backend);
    let prompt = "a zombie runs to the left on green grass";
    let features = sampler.encode_text(&[prompt], &mut Watch::default()).unwrap();
    let mut noise = |draw: u64, out: &mut [f32]| {
        let mut rng = Rng::new(draw);
        // A sum of twelve even draws is close to a normal one.
        out.fill_with(|| (0..12).map(|_| rng.uniform(-0.5, 0.5)).sum::<f64>() as f32);
    };
    let mut conditioning = Conditioning { features: &features, noise: &mut noise, given: None };
    let latents = sampler.denoise(&mut conditioning, &mut Watch::default()).unwrap();
    let mut pixels: Vec<f64> = vec![];
    sampler
        .decode::<pipeline::Error>(&latents, &mut Watch::default(), |_, _, frame| {
            pixels.extend(frame.iter().map(|&x| f64::from(x)));
            Ok(())
        })
        .unwrap();
    Video { latents: latents.iter().map(|&x| f64::from(x)).collect(), pixels }
}

#[test]
fn an_engine_makes_the_video_of_the_cpu() {
    let model = embedded();
    let scheduler =
        Scheduler::new(SchedulerKind::Iddpm, 2, 2.5, None, &model.transformer).unwrap();
    let on_gpu = cuda_tests::target(GPU);
    let mut builder = Builder::new(GPU);
    let plans = plans(&model, &scheduler, &on_gpu);
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
    let found = sample(&model, &scheduler, &on_gpu, &EngineBackend::new(engine, Box::new(open)));

    let cpu = tests::compiled::target(Isa::detect(), 2);
    let backend = Cpu::new(Arc::new(Pool::new(2).unwrap()));
    let expected = sample(&model, &scheduler, &cpu, &backend);
    // Both round to bf16 at every value, not the same ones.
    let latents = tests::relative_l2(&found.latents, &expected.latents);
    let pixels = tests::relative_l2(&found.pixels, &expected.pixels);
    assert!(latents < 2e-2, "latents: {latents}");
    assert!(pixels < 4e-2, "pixels: {pixels}");
}
