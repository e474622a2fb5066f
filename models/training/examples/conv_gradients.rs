//! What convolutions and their gradients cost: `conv_gradients [CONFIG.json FRAMES SIDE [bf16]]`. Without arguments the
//! rate of each on some shapes; with them one forward and backward pass of an autoencoder, kernel by kernel.
#![allow(clippy::unwrap_used, reason = "an example ends where something is wrong")]
#![allow(clippy::print_stdout, reason = "an example prints what it finds")]

use std::collections::BTreeMap;
use std::sync::Arc;

use kernels::{Isa, Pool, Target};
use models::config::AutoencoderKl;
use models::vae::{self, FrameBucket};
use ops::defs::conv::Window;
use ops::{Builder, DType, Graph, Role, Tensor, TensorType, ValueId, append_gradients};
use runtime::{Session, WeightSource, WeightStore};

/// `[frames, channels, output channels, height and width, kernel, stride]`.
const SHAPES: [[usize; 6]; 9] = [
    [4, 128, 128, 64, 3, 1],
    [1, 512, 512, 32, 3, 1],
    [4, 512, 512, 32, 3, 1],
    [1, 256, 256, 128, 3, 1],
    [4, 128, 128, 64, 3, 2],
    [4, 512, 256, 32, 1, 1],
    [4, 3, 128, 64, 3, 1],
    [4, 128, 3, 64, 3, 1],
    [16, 16, 16, 64, 3, 1],
];
/// Runs, of which the fastest counts.
const RUNS: usize = 7;

/// There are none: all that is trained is an input.
struct NoWeights;

impl WeightSource for NoWeights {
    fn tensor(&self, _: &str) -> Result<Option<(TensorType, std::borrow::Cow<'_, [u8]>)>, String> {
        Ok(None)
    }
}

/// Normal numbers; those of a matrix are as small as trained ones.
fn made_up(ty: &TensorType) -> Vec<u8> {
    let mut values = vec![0f32; ty.count()];
    diffusion::fill_normal(1, ty.count() as u64, 0, &mut values);
    let fan_in = ty.shape().iter().skip(1).product::<usize>() as f32;
    if ty.rank() == 4 {
        values.iter_mut().for_each(|x| *x *= fan_in.sqrt().recip());
    }
    let values = values.into_iter().map(f64::from).collect();
    Tensor::floats(ty.clone(), values).rounded().to_bytes()
}

/// The least seconds of each step of `graph`, by kernel, with FLOPs; and of all steps.
fn measure(graph: Graph) -> (BTreeMap<&'static str, (f64, u64, usize)>, f64) {
    let threads = std::thread::available_parallelism().unwrap().get();
    let target = Target::of_cpu(Isa::detect(), threads);
    let plan = Arc::new(compiler::compile_training(graph, &target, None).unwrap().plan);
    let pool = Arc::new(Pool::new(threads).unwrap());
    let store = WeightStore::new(NoWeights);
    let mut session = Session::new(Arc::clone(&plan), &store, pool).unwrap();
    let inputs: Vec<(String, Vec<u8>)> =
        plan.inputs.iter().map(|port| (port.name.to_string(), made_up(&port.ty))).collect();
    let inputs: Vec<(&str, &[u8])> = inputs.iter().map(|(name, b)| (&**name, &b[..])).collect();
    let mut least = vec![f64::INFINITY; plan.steps.len()];
    for _ in 0..RUNS {
        let before: Vec<f64> = session.times().iter().map(|time| time.seconds).collect();
        session.run(&inputs).unwrap();
        for (i, time) in session.times().iter().enumerate() {
            least[i] = least[i].min(time.seconds - before[i]);
        }
    }
    let mut by_kernel: BTreeMap<&'static str, (f64, u64, usize)> = BTreeMap::new();
    for (step, seconds) in plan.steps.iter().zip(&least) {
        let entry = by_kernel.entry(step.kernel.def().name()).or_default();
        entry.0 += seconds;
        entry.1 += plan.graph.node_flops(step.value);
        entry.2 += 1;
    }
    if std::env::args().any(|arg| arg == "--steps") {
        let mut order: Vec<usize> = (0..plan.steps.len()).collect();
        order.sort_by(|a, b| least[*b].total_cmp(&least[*a]));
        for &i in order.iter().take(40) {
            let (step, ms) = (&plan.steps[i], least[i] * 1e3);
            let ty = plan.graph.ty(step.value);
            println!(
                "{ms:8.3} ms {} {ty} {:?}",
                step.kernel.def().name(),
                step.kernel.def().tunables()
            );
        }
    }
    (by_kernel, least.iter().sum())
}

fn rates() {
    for [n, c, o, side, kernel, stride] in SHAPES {
        let pad = [kernel / 2; 2];
        let window = Window::new(&[stride; 2], &pad, &pad);
        let mut b = Builder::new("convolution");
        let f32 = |shape: &[usize]| TensorType::new(DType::F32, shape).unwrap();
        let (x, w) = ([n, side, side, c], [o, c, kernel, kernel]);
        let values = [b.input("x", f32(&x)), b.input("w", f32(&w))];
        let y = b.conv(values[0], values[1], &window).unwrap();
        let grad = f32(b.shape(y));
        let grad = b.input("grad", grad);
        let dx = b.conv_input_grad(grad, values[1], &window, &x).unwrap();
        let dw = b.conv_weight_grad(values[0], grad, &window, &w).unwrap();
        let (found, _) = measure(b.finish(&[y, dx, dw]));
        print!("{n:2} x {side:3}x{side:<3} {c:3} -> {o:3}, {kernel}x{kernel} by {stride}:");
        for (name, (seconds, flops, _)) in found {
            print!("  {name} {:.2} ms {:.0} GFLOP/s", seconds * 1e3, flops as f64 / seconds / 1e9);
        }
        println!();
    }
}

/// Encoding, decoding, the mean square of the difference, and its gradient by every parameter.
fn autoencoder(config: &AutoencoderKl, pixels: &FrameBucket) -> Graph {
    let encoder = vae::encoder_graph(config, pixels).unwrap();
    let factor = config.downscale();
    let latents =
        FrameBucket { height: pixels.height / factor, width: pixels.width / factor, ..*pixels };
    let decoder = vae::decoder_graph(config, &latents).unwrap();
    let mut b = Builder::new("autoencoder");
    let mut trained = vec![];
    // `graph` on `given`, every parameter an f32 input.
    let mut append = |b: &mut Builder, graph: &Graph, given: Option<ValueId>| {
        let mut values: Vec<ValueId> = vec![];
        for node in &graph.nodes {
            values.push(match (&node.role, given) {
                (Role::Input(_), Some(given)) => given,
                (Role::Param(name), _) => {
                    let master = b.input(name, node.ty.with_dtype(DType::F32));
                    trained.push(master);
                    b.cast(master, node.ty.dtype()).unwrap()
                }
                (Role::Input(_) | Role::Constant(_) | Role::Op(_), _) => {
                    let args: Vec<ValueId> =
                        node.args.iter().map(|arg| values[arg.index()]).collect();
                    b.copy_node(node, &args).unwrap()
                }
            });
        }
        graph.outputs.iter().map(|out| values[out.index()]).collect::<Vec<_>>()
    };
    let posterior = append(&mut b, &encoder, None);
    let decoded = append(&mut b, &decoder, Some(posterior[1]));
    let x = b.graph().inputs().find(|(_, name)| *name == "x").unwrap().0;
    let difference = b.sub(decoded[0], x).unwrap();
    let square = b.square(difference).unwrap();
    let loss = b.reduce_mean(square, &[0, 1, 2, 3]).unwrap();
    let one = b.scalar_f32(1.0, 4).unwrap();
    let gradients = append_gradients(&mut b, loss, one, &trained).unwrap();
    // The deviation of the posterior has no influence here.
    let outputs: Vec<ValueId> =
        std::iter::once(loss).chain(gradients.into_iter().flatten()).collect();
    b.finish(&outputs)
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--steps").collect();
    let [config, frames, side, rest @ ..] = &args[..] else {
        rates();
        return;
    };
    let config = serde_json::from_slice(&std::fs::read(config).unwrap()).unwrap();
    let config = AutoencoderKl::from_json(&config).unwrap();
    let (frames, side) = (frames.parse().unwrap(), side.parse().unwrap());
    let dtype = if rest.is_empty() { DType::F32 } else { DType::Bf16 };
    let graph = autoencoder(&config, &FrameBucket { dtype, frames, height: side, width: side });
    let flops = graph.flops() as f64;
    let (found, total) = measure(graph);
    for (name, (seconds, flops, n)) in found {
        let rate = flops as f64 / seconds / 1e9;
        println!("{name:18} {n:4} steps {:9.2} ms {rate:6.0} GFLOP/s", seconds * 1e3);
    }
    println!(
        "all {:.1} GFLOP in {:.1} ms: {:.0} GFLOP/s",
        flops / 1e9,
        total * 1e3,
        flops / total / 1e9
    );
}
