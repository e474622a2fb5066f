//! Whole runs of the small model: recorded cases, and the same run by the interpreter.

use std::collections::BTreeMap;
use std::path::Path;

use checkpoint::Checkpoint;
use models::Bucket;
use ops::{DType, Graph, Rounding, Tensor};
use pipeline::{
    Model, Noise, Paths, Request, Scheduler, SchedulerKind, decode_graph, encode_graph, text_graph,
};
use safetensors::{Dtype, SafeTensors};

/// The model that is embedded in the program: bf16.
pub fn embedded() -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/kino/embedded/tiny-flare-1.1");
    open(&path)
}

/// A pipeline folder as a model.
pub fn open(path: &Path) -> Model {
    let paths = Paths { model: Some(path.to_path_buf()), ..Paths::default() };
    Model::open(&paths).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A recorded run: prompt and settings in `meta.json`, tensors in `case.safetensors`.
#[derive(Debug)]
pub struct Case {
    bytes: Vec<u8>,
    meta: serde_json::Value,
}

impl Case {
    /// The case of a folder.
    pub fn open(folder: &Path) -> Case {
        Case::open_as(folder, "case.safetensors")
    }

    /// The case of a folder with the tensors of another file.
    pub fn open_as(folder: &Path, tensors: &str) -> Case {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        Case {
            bytes: read(tensors),
            meta: serde_json::from_slice(&read("meta.json")).expect("meta.json is JSON"),
        }
    }

    /// The bytes of tensor `name`, which must be of type `dtype`.
    fn bytes(&self, name: &str, dtype: Dtype) -> Vec<u8> {
        let file = SafeTensors::deserialize(&self.bytes).expect("the case is safetensors");
        let view = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(view.dtype(), dtype, "{name}");
        view.data().to_vec()
    }

    /// The elements of an f32 tensor.
    pub fn f32(&self, name: &str) -> Vec<f32> {
        numbers(&self.bytes(name, Dtype::F32), f32::from_le_bytes)
    }

    /// The elements of an i64 tensor.
    pub fn i64(&self, name: &str) -> Vec<i64> {
        numbers(&self.bytes(name, Dtype::I64), i64::from_le_bytes)
    }

    /// The elements of a u8 tensor.
    pub fn u8(&self, name: &str) -> Vec<u8> {
        self.bytes(name, Dtype::U8)
    }

    /// A number of `meta.json`.
    pub fn number(&self, key: &str) -> f64 {
        self.meta[key].as_f64().unwrap_or_else(|| panic!("meta.json: {key}"))
    }

    /// The prompt.
    pub fn prompt(&self) -> String {
        self.meta["prompt"].as_str().expect("meta.json has a prompt").to_string()
    }

    /// What the run asks for.
    pub fn request(&self, frame_mask: bool) -> Request {
        Request {
            rows: 1,
            num_frames: self.number("num_frames") as usize,
            height: self.number("height") as usize,
            width: self.number("width") as usize,
            fps: self.number("fps"),
            dtype: DType::F32,
            text_dtype: DType::F32,
            frame_mask,
        }
    }

    /// Its sampler.
    pub fn scheduler(&self, model: &Model) -> Scheduler {
        let steps = self.number("num_sampling_steps") as usize;
        let scale = self.number("cfg_scale");
        Scheduler::new(SchedulerKind::Iddpm, steps, scale, None, &model.transformer)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Draw `number` of the run. Noise is recorded for the doubled batch; the prompt's row is first.
    pub fn draw(&self, number: u64) -> Vec<f32> {
        match number {
            0 => self.f32("in.z"),
            number => {
                let mut both = self.f32(&format!("noise.{:03}", number - 1));
                both.truncate(both.len() / 2);
                both
            }
        }
    }

    /// Draw `number` of a masked run on the noise of a recorded run without a mask, in which the
    /// second row of every draw decides nothing: it is the noise of given frames.
    pub fn masked_draw(&self, number: u64) -> Vec<f32> {
        if number == 0 {
            return self.draw(0);
        }
        let both = self.f32(&format!("noise.{:03}", (number - 1) / 2));
        let (prompt, other) = both.split_at(both.len() / 2);
        if number % 2 == 1 { other.to_vec() } else { prompt.to_vec() }
    }

    /// Frame `t` of the recorded video as the VAE's encoder takes it: f32 `[3, H, W]` in -1..1.
    pub fn frame(&self, tensor: &str, t: usize) -> Vec<f32> {
        let plane = (self.number("height") * self.number("width")) as usize;
        let bytes = self.u8(tensor);
        let frame = &bytes[t * plane * 3..][..plane * 3];
        (0..3)
            .flat_map(|channel| frame.iter().skip(channel).step_by(3))
            .map(|&byte| f32::from(byte) / 255.0 * 2.0 - 1.0)
            .collect()
    }
}

fn numbers<T, const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.chunks_exact(N).map(|chunk| read(chunk.try_into().expect("N bytes"))).collect()
}

/// `[T, H, W, 3]` bytes of frames `[T, 3, H, W]` in -1..1, rounded as upstream rounds them.
pub fn frames_u8<T: Copy + Into<f64>>(frames: &[T], plane: usize) -> Vec<u8> {
    let byte = |x: T| (((x.into() + 1.0) / 2.0).clamp(0.0, 1.0) * 255.0 + 0.5) as u8;
    let pixels = frames.chunks_exact(3 * plane).flat_map(|frame| {
        (0..plane).flat_map(move |pixel| (0..3).map(move |c| frame[c * plane + pixel]))
    });
    pixels.map(byte).collect()
}

/// A run of the model as its graphs say it, every value in f64: slow, obvious, and without the
/// compiler, its kernels and the runtime.
#[derive(Debug)]
pub struct Interpreted<'m> {
    model: &'m Model,
    request: Request,
    scheduler: Scheduler,
    bucket: Bucket,
}

impl<'m> Interpreted<'m> {
    /// The run that `case` asks for.
    pub fn new(model: &'m Model, case: &Case, frame_mask: bool) -> Interpreted<'m> {
        let request = case.request(frame_mask);
        let bucket = request.bucket(model).unwrap_or_else(|error| panic!("{error}"));
        Interpreted { model, scheduler: case.scheduler(model), request, bucket }
    }

    /// Features of a prompt, `[tokens, channels]`, and its mask.
    pub fn text(&self, prompt: &str) -> (Vec<f64>, Vec<i64>) {
        let graph = text_graph(&self.model.t5, DType::F32, self.bucket.caption_tokens)
            .expect("a text graph");
        let encoded = self.model.tokenizer.encode(prompt, self.bucket.caption_tokens);
        let encoded = encoded.expect("the prompt is encoded");
        let mut run = Given::new(&graph, self.model.text_encoder.checkpoint());
        run.ints("input_ids", encoded.ids);
        run.ints("attention_mask", encoded.mask.clone());
        (run.evaluate().remove(0), encoded.mask)
    }

    /// The latent of a given frame.
    pub fn encode(&self, pixels: &[f32]) -> Vec<f64> {
        let size = [self.request.height, self.request.width];
        let graph = encode_graph(&self.model.vae, DType::F32, size).expect("an encoder graph");
        let mut run = Given::new(&graph, self.model.autoencoder.checkpoint());
        run.floats("x", pixels.iter().map(|&x| f64::from(x)).collect());
        run.evaluate().remove(0)
    }

    /// The latents of a run. `given` is the latents that frames start from and their edit ratios.
    pub fn denoise(
        &self,
        (features, mask): (&[f64], &[i64]),
        draw: impl Fn(u64) -> Vec<f32>,
        given: Option<(&[f64], &[f32])>,
    ) -> Vec<f64> {
        let (transformer, bucket) = (&self.model.transformer, &self.bucket);
        let graph = self.scheduler.graph(transformer, bucket, Noise::Given).expect("a step");
        let mut run = Given::new(&graph, self.model.denoiser.checkpoint());
        run.floats("y", features.to_vec());
        run.ints("mask", mask.to_vec());
        let Request { height, width, num_frames, fps, .. } = self.request;
        for (name, value) in [
            ("height", height as f64),
            ("width", width as f64),
            ("num_frames", num_frames as f64),
            ("ar", height as f64 / width as f64),
            ("fps", fps),
        ] {
            run.floats(name, vec![value]);
        }
        let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<f64>>();
        let mut x = wide(draw(0));
        if let Some((latents, ratios)) = given {
            let plane = self.bucket.latent[1] * self.bucket.latent[2];
            let planes = x.chunks_exact_mut(plane).zip(latents.chunks_exact(plane));
            for (at, (x, latent)) in planes.enumerate() {
                if ratios[at % num_frames] < 1.0 {
                    x.copy_from_slice(latent);
                }
            }
        }
        let mut n_draws = 0;
        let mut next = || {
            n_draws += 1;
            wide(draw(n_draws))
        };
        for number in 0..self.scheduler.n_steps() {
            let step = self.scheduler.step(number);
            run.floats("x", x);
            run.floats("timestep", vec![f64::from(step.timestep)]);
            run.floats("coefficients", wide(step.coefficients));
            if let (Some((_, ratios)), Scheduler::Iddpm(iddpm)) = (given, &self.scheduler) {
                let roles = iddpm.frame_roles(number, ratios).expect("ratios of 0 to 1");
                for (name, flags) in
                    [("x_mask", roles.noisy), ("renoised", roles.renoised), ("kept", roles.kept)]
                {
                    run.ints(name, flags.into_iter().map(i64::from).collect());
                }
                run.floats("renoise", next());
            }
            run.floats("noise", next());
            x = run.evaluate().remove(0);
        }
        x
    }

    /// The frames `[T, 3, H, W]` of latents `[channels, T, h, w]`.
    pub fn decode(&self, latents: &[f64]) -> Vec<f64> {
        let [n_frames, height, width] = self.bucket.latent;
        let graph = decode_graph(&self.model.vae, DType::F32, [height, width]).expect("a decoder");
        let mut run = Given::new(&graph, self.model.autoencoder.checkpoint());
        let plane = height * width;
        let mut frames = Vec::new();
        for t in 0..n_frames {
            let planes = latents.chunks_exact(plane).skip(t).step_by(n_frames);
            run.floats("z", planes.flatten().copied().collect());
            frames.append(&mut run.evaluate().remove(0));
        }
        frames
    }
}

/// A graph and what is given to it.
struct Given<'g> {
    graph: &'g Graph,
    values: BTreeMap<String, Tensor>,
}

impl<'g> Given<'g> {
    /// `graph` with the parameters of `checkpoint`.
    fn new(graph: &'g Graph, checkpoint: &Checkpoint) -> Given<'g> {
        let value = |(value, name): (ops::ValueId, &str)| {
            let values = checkpoint.to_f32(name).unwrap_or_else(|error| panic!("{error}"));
            let values = values.into_iter().map(f64::from).collect();
            (name.to_string(), Tensor::floats(graph.ty(value).clone(), values))
        };
        Given { graph, values: graph.params().map(value).collect() }
    }

    fn ty(&self, name: &str) -> ops::TensorType {
        let found = self.graph.inputs().find(|(_, input)| *input == name);
        let (value, _) = found.unwrap_or_else(|| panic!("@{} has no `{name}`", self.graph.name));
        self.graph.ty(value).clone()
    }

    fn floats(&mut self, name: &str, values: Vec<f64>) {
        self.values.insert(name.to_string(), Tensor::floats(self.ty(name), values));
    }

    fn ints(&mut self, name: &str, values: Vec<i64>) {
        self.values.insert(name.to_string(), Tensor::ints(self.ty(name), values));
    }

    fn evaluate(&self) -> Vec<Vec<f64>> {
        let outputs = ops::eval(self.graph, &self.values, Rounding::Exact);
        let outputs = outputs.unwrap_or_else(|error| panic!("@{}: {error}", self.graph.name));
        outputs.into_iter().map(|output| output.as_floats().to_vec()).collect()
    }
}
