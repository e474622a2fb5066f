//! What a recipe's training step costs: `step RECIPE FRAMES HEIGHT WIDTH ROWS [UPDATES]`, sizes of the
//! latent. Builds and plans the step, and makes updates on made-up weights and latents.
#![allow(clippy::unwrap_used, reason = "an example ends where something is wrong")]
#![allow(clippy::print_stdout, reason = "an example prints what it finds")]

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use kernels::{Isa, Pool, Target};
use models::Bucket;
use ops::{DType, TensorType};
use runtime::{WeightSource, WeightStore};
use training::recipe::DTypeName;
use training::{Machine, Model, State, TimestepSampler, Trainer, find, training_step};

/// Normal numbers by name and element.
struct MadeUp(Model);

impl WeightSource for MadeUp {
    fn tensor(&self, name: &str) -> Result<Option<(TensorType, Cow<'_, [u8]>)>, String> {
        let params = self.0.params().map_err(|error| error.to_string())?;
        let Some((_, shape)) = params.into_iter().find(|(known, _)| known == name) else {
            return Ok(None);
        };
        let scale = (shape[0] as f32 / shape.iter().product::<usize>() as f32).sqrt();
        let ty = TensorType::new(DType::F32, shape).map_err(|error| error.to_string())?;
        let mut values = vec![0f32; ty.count()];
        diffusion::fill_normal(1, name.len() as u64, 0, &mut values);
        values.iter_mut().for_each(|x| *x *= 0.5 * scale);
        Ok(Some((ty, Cow::Owned(bytemuck::cast_slice(&values).to_vec()))))
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let name = args.next().expect("a recipe");
    let numbers: Vec<usize> = args.map(|arg| arg.parse().expect("a number")).collect();
    let (&[t, h, w, rows], updates) = (&numbers[..4].try_into().unwrap(), numbers.get(4));
    let recipe = find(&name).unwrap();
    let (model, options) = (recipe.model().unwrap(), recipe.options().unwrap());
    let tokens = model.common().model_max_length;
    let pixels = [8.0 * h as f64, 8.0 * w as f64];
    let bucket = Bucket {
        frame_mask: !recipe.masks.is_empty(),
        dtype: match recipe.model.dtype {
            DTypeName::F32 => DType::F32,
            DTypeName::Bf16 => DType::Bf16,
        },
        ..Bucket::new(rows, [t, h, w], pixels, tokens)
    };
    let start = Instant::now();
    let program = training_step(&model, &bucket, &options).unwrap();
    let weights: usize = program.trained.iter().map(|(_, ty)| ty.count()).sum();
    println!(
        "{} trained tensors of {weights} elements, {} nodes, {:.1} GFLOP, built in {:.2} s",
        program.trained.len(),
        program.graph.nodes.len(),
        program.graph.flops() as f64 / 1e9,
        start.elapsed().as_secs_f64()
    );
    let threads = std::thread::available_parallelism().unwrap().get();
    let target = Target::of_cpu(Isa::detect(), threads);
    let start = Instant::now();
    let carried = program.carried();
    let plan = compiler::compile_training_carrying(program.graph, &target, None, &carried);
    let plan = plan.unwrap().plan;
    let gib = |bytes: usize| bytes as f64 / f64::from(1 << 30);
    println!(
        "{:.1} GFLOP in {} steps, {} of them with the one before, in {:.2} GiB and {:.2} GiB of state, planned in \
         {:.2} s",
        plan.flops() as f64 / 1e9,
        plan.steps.len(),
        plan.steps.iter().filter(|step| step.joins).count(),
        gib(plan.arena_bytes),
        gib(plan.carried_bytes()),
        start.elapsed().as_secs_f64()
    );
    drop(plan);
    let Some(&updates) = updates else { return };
    let source = MadeUp(model.clone());
    let state = State::new(&model, &options, &source).unwrap();
    let pool = Arc::new(Pool::new(threads).unwrap());
    let machine = Machine { target, pool, memory: None };
    let schedule = recipe.lr_schedule().unwrap();
    let sampler = TimestepSampler::new(options.precision, options.weighting).unwrap();
    let store = WeightStore::new(source);
    let micro_batches = options.micro_batches;
    let mut trainer = Trainer::new(model.clone(), options, state, store, machine).unwrap();
    let id = trainer.compile(&bucket).unwrap();

    let latent = model.common().in_channels * t * h * w * rows;
    let normal = |draw: u64, count: usize| {
        let mut values = vec![0f32; count];
        diffusion::fill_normal(2, draw, 0, &mut values);
        bytemuck::cast_slice::<f32, u8>(&values).to_vec()
    };
    let caption = normal(0, rows * tokens * model.common().caption_channels);
    let latents = normal(1, latent);
    let floats = |value: f32| bytemuck::cast_slice::<f32, u8>(&vec![value; rows]).to_vec();
    let mut batch = vec![
        ("x", latents),
        ("y", caption),
        ("mask", vec![1; rows * tokens]),
        ("drop_caption", vec![0; rows]),
    ];
    if bucket.frame_mask {
        batch.push(("x_mask", vec![1; rows * t]));
    }
    if let Model::Stdit2(_) = model {
        let sizes = [pixels[0], pixels[1], t as f64, pixels[0] / pixels[1], 8.0];
        let names = ["height", "width", "num_frames", "ar", "fps"];
        batch.extend(names.into_iter().zip(sizes.map(|size| floats(size as f32))));
    }
    for step in 0..updates as u64 {
        let timesteps = sampler.draw(recipe.run.seed, step, rows);
        let mut all = batch.clone();
        all.push(("timestep", bytemuck::cast_slice::<i64, u8>(&timesteps).to_vec()));
        all.push(("noise", normal(2 + step, latent)));
        let all: Vec<(&str, &[u8])> = all.iter().map(|(name, b)| (*name, &b[..])).collect();
        let start = Instant::now();
        let lr = schedule.rate(recipe.optimizer.lr, step);
        let outcome = trainer.update(&vec![(id, &all[..]); micro_batches], lr).unwrap();
        println!(
            "update {step}: loss {:.4}, norm {:.4}, {:.3} s",
            outcome.loss,
            outcome.grad_norm,
            start.elapsed().as_secs_f64()
        );
    }
}
