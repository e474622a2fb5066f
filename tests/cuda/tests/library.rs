//! Products by cuBLASLt, on a model of it: which ones an engine offers, what the library is told of them, and that
//! what it then computes is what the op says.
#![allow(clippy::unwrap_used, reason = "a failing test may panic anywhere")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use aot::Builder as EngineBuilder;
use compiler::Plan;
use cuda::lt::Workspace;
use cuda::{Device, EngineBackend, Multiplier, Products, Session};
use cuda_tests::lt_model::LtModel;
use cuda_tests::plain_sites::{self, Typed};
use cuda_tests::sites::Site;
use cuda_tests::table::Table;
use cuda_tests::watched::{Graphs, Library, Traffic, Watched, seen};
use emulator::Options;
use engine::{Engine, Matrix, Product};
use kernels::Target;
use kernels::cuda::Gpu;
use kernels::cuda::tiles::Tiles;
use measure::MadeUp;
use ops::{DType, Graph, Rounding, Tensor, ValueId};
use pipeline::{Plans, Request, Scheduler, SchedulerKind};
use runtime::{Backend, Control, WeightSource, WeightStore};
use tests::relative_l2;
use tests::whole_run::embedded;

const GPU: Gpu = Gpu(80);

/// The engine of one plan, by way of its file.
fn engine(plan: &Plan, memory: Option<usize>) -> Engine {
    let mut builder = EngineBuilder::new();
    builder.add_within("program", plan, memory).unwrap();
    let about = ("tests".to_owned(), "products".to_owned(), DType::Bf16);
    let engine = builder.build(about, cuda_tests::nvrtc(), None, 2, &|_| {}).unwrap();
    Engine::from_bytes(engine.to_bytes().unwrap()).unwrap()
}

fn products(engine: &Engine) -> Vec<&Product> {
    let steps = engine.programs.iter().flat_map(|program| &program.steps);
    let launches = steps.flat_map(|step| &step.launches);
    launches.filter_map(|launch| launch.product.as_ref()).collect()
}

fn device(library: Library, traffic: &Arc<Mutex<Traffic>>, gpu: Gpu) -> Watched {
    let arch = gpu.code_name().parse().unwrap();
    Watched::new(arch, Options::default(), Arc::clone(traffic)).with_library(library)
}

/// The first output of an engine, and how many products the library computed, and kernels were launched.
fn run(
    engine: &Engine,
    given: &BTreeMap<String, Tensor>,
    gpu: Gpu,
    products: Products,
) -> Result<(Tensor, [usize; 2]), String> {
    let traffic = Arc::default();
    let device = Box::new(device(Library::Model, &traffic, gpu));
    let store = WeightStore::new(Table(given.clone()));
    let engine = Arc::new(engine.clone());
    let session = Session::with_products(device, Arc::clone(&engine), &[], &store, products);
    let mut session = session.map_err(|error| error.to_string())?;
    let program = &engine.programs[0];
    let id = session.find(&program.name).unwrap();
    for port in &program.inputs {
        session.write_input(id, &port.name, &given[&port.name].to_bytes()).unwrap();
    }
    session.run(id).map_err(|error| error.to_string())?;
    let port = &program.outputs[0];
    let bytes = session.read_output(id, &port.name).unwrap();
    let traffic = seen(&traffic);
    let counts = [traffic.n_products, traffic.n_launches];
    Ok((Tensor::from_bytes(port.ty.clone(), &bytes).unwrap(), counts))
}

fn compile(graph: &Graph) -> Plan {
    compiler::compile(graph.clone(), &cuda_tests::target(GPU)).unwrap()
}

#[test]
fn what_the_library_is_told_is_the_product() {
    for dtype in [DType::Bf16, DType::F16] {
        for Site { name, graph, limit } in plain_sites::sites(dtype) {
            let engine = engine(&compile(&graph), None);
            let [product] = products(&engine)[..] else {
                panic!("{name}: {:?}", products(&engine))
            };
            assert!(product.factors == dtype && !product.is_faster, "{name}");
            let given = cuda_tests::given(&name, &graph, (-1.0, 1.0));
            let expected = &cuda_tests::expected(&graph, &given)[0];
            let (own, [_, n_launches]) = run(&engine, &given, GPU, Products::Own).unwrap();
            let (found, counts) = run(&engine, &given, GPU, Products::Library).unwrap();
            assert_eq!(counts, [1, n_launches - 1], "{name}: in place of one launch");
            for (who, found) in [("own", own), ("library", found)] {
                let error = relative_l2(found.as_floats(), expected.as_floats());
                assert!(error < limit, "{name}, {who}: {error}");
            }
        }
    }
}

#[test]
fn what_the_library_may_round_otherwise_is_not_offered() {
    type Make = fn(&mut Typed) -> Result<ValueId, ops::Error>;
    let cases: [(&str, DType, Make); 7] = [
        ("an activation", DType::Bf16, |g| {
            let y = g.linear(&[40])?;
            g.b.gelu_tanh(y)
        }),
        ("a gate", DType::Bf16, |g| {
            let (y, gate) = (g.linear(&[2, 20])?, g.input("gate", &[2, 1, 72]));
            g.b.mul(y, gate)
        }),
        ("two residuals", DType::Bf16, |g| {
            let y = g.linear(&[40])?;
            let (first, second) = (g.input("first", &[40, 72]), g.input("second", &[40, 72]));
            let y = g.b.add(y, first)?;
            g.b.add(y, second)
        }),
        ("the sums twice", DType::Bf16, |g| {
            let y = g.linear(&[40])?;
            g.b.add(y, y)
        }),
        ("few rows", DType::Bf16, |g| g.linear(&[8])),
        ("f32", DType::F32, |g| g.linear(&[40])),
        ("columns that are not 16 bytes apart", DType::Bf16, |g| {
            let (x, w) = (g.input("x", &[40, 36]), g.param("w", &[72, 36]));
            g.b.matmul(x, w, false, true)
        }),
    ];
    for (name, dtype, make) in cases {
        let mut g = Typed::new(dtype);
        let output = make(&mut g).unwrap();
        let graph = g.b.finish(&[output]);
        let engine = engine(&compile(&graph), None);
        assert_eq!(products(&engine), [] as [&Product; 0], "{name}");
        assert_eq!(engine.programs[0].workspace_bytes, 0, "{name}");
        // A library that has nothing to do is not looked for.
        let device = Box::new(device(Library::None, &Arc::default(), GPU));
        let store = WeightStore::new(Table(cuda_tests::given(name, &graph, (-1.0, 1.0))));
        let engine = Arc::new(engine);
        let session = Session::with_products(device, engine, &[], &store, Products::Library);
        let note = session.unwrap().note();
        assert_eq!(note.unwrap(), "cuBLASLt can compute none of its products", "{name}");
    }
}

#[test]
fn a_product_that_is_described_wrongly_is_noticed() {
    let mut g = Typed::new(DType::Bf16);
    let (x, y) = (g.input("x", &[2, 48, 48]), g.input("y", &[2, 48, 48]));
    let product = g.b.matmul(x, y, false, true).unwrap();
    let (bias, residual) = (g.param("bias", &[1, 1, 48]), g.input("residual", &[2, 48, 48]));
    let product = g.b.add(product, bias).unwrap();
    let product = g.b.add(product, residual).unwrap();
    let graph = g.b.finish(&[product]);
    let given = cuda_tests::given("wrong", &graph, (-1.0, 1.0));
    let expected = &cuda_tests::expected(&graph, &given)[0];
    let right = engine(&compile(&graph), None);
    type Change = fn(&mut Product);
    let changes: [(&str, Change); 15] = [
        ("left transposed", |p| p.left.is_transposed = true),
        ("right transposed", |p| p.right.is_transposed = true),
        ("left apart", |p| p.left.leading = 56),
        ("right apart", |p| p.right.leading = 56),
        ("result apart", |p| p.result.leading = 56),
        ("residual apart", |p| p.residual.as_mut().unwrap().leading = 56),
        ("left of the batch", |p| p.left.batch_stride = 0),
        ("right of the batch", |p| p.right.batch_stride = 48),
        ("result of the batch", |p| p.result.batch_stride = 0),
        ("factors swapped", |p| (p.left, p.right) = (p.right, p.left)),
        ("no bias", |p| p.bias = None),
        ("no residual", |p| p.residual = None),
        ("depth", |p| p.depth = 40),
        ("rows", |p| p.rows = 40),
        ("type", |p| (p.factors, p.sums) = (DType::F16, DType::F16)),
    ];
    let distance = |engine: &Engine| -> Result<f64, String> {
        let (found, counts) = run(engine, &given, GPU, Products::Library)?;
        assert_eq!(counts[0], 1);
        let found = found.as_floats();
        Ok(if found.iter().all(|x| x.is_finite()) {
            relative_l2(found, expected.as_floats())
        } else {
            f64::INFINITY
        })
    };
    assert!(distance(&right).unwrap() < 3e-3);
    for (name, change) in changes {
        let mut wrong = right.clone();
        for launch in wrong.programs[0].steps.iter_mut().flat_map(|step| &mut step.launches) {
            launch.product.iter_mut().for_each(change);
        }
        match distance(&wrong) {
            Ok(distance) => assert!(distance > 3e-2, "{name}: {distance}"),
            Err(reason) => {
                assert!(reason.contains("cuBLASLt") || reason.contains("0x"), "{name}: {reason}");
            }
        }
    }
}

#[test]
fn every_call_is_that_of_the_documentation() {
    let matrix = |pointer, leading| Matrix {
        pointer,
        is_transposed: false,
        leading,
        batch_stride: 10 * leading,
    };
    let product = Product {
        factors: DType::Bf16,
        sums: DType::F32,
        batch: 3,
        rows: 10,
        columns: 20,
        depth: 30,
        left: matrix(0, 32),
        right: Matrix { is_transposed: true, ..matrix(1, 24) },
        result: matrix(2, 40),
        bias: Some(3),
        residual: Some(matrix(4, 48)),
        is_faster: false,
    };
    let pointers = [4096, 4096 + 16, 8192, 8192 + 64, 12_288];
    let workspace = Workspace { address: 65_536, bytes: 4096 };
    let mut multiplier = Multiplier::new(LtModel::default()).unwrap();
    let id = multiplier.prepare(&product, &pointers, workspace).unwrap().unwrap();
    assert_eq!(
        multiplier.api().take_log(),
        [
            "0 = handle",
            // Sums and factors of them in f32; A as it lies, B as it lies, the bias's place and type.
            "1 = matmul 68 0",
            "1.3 = 0",
            "1.4 = 0",
            "1.7 = 4",
            "1.8 = 8256",
            "1.26 = 0",
            // A is the right factor, which lies depth by depth: as many lines as it is deep.
            "2 = layout 14 20x30 24",
            "2.5 = 3",
            "2.6 = 240",
            "3 = layout 14 30x10 32",
            "3.5 = 3",
            "3.6 = 320",
            // C is the residual.
            "4 = layout 0 20x10 48",
            "4.5 = 3",
            "4.6 = 480",
            "5 = layout 0 20x10 40",
            "5.5 = 3",
            "5.6 = 400",
            // The workspace, sums of parts in f32, what addresses are multiples of.
            "6 = preference",
            "6.1 = 4096",
            "6.3 = 2",
            "6.5 = 16",
            "6.6 = 256",
            "6.7 = 256",
            "6.8 = 256",
            "find 1 2 3 4 5 by 6",
            "destroy 6",
        ]
    );
    multiplier.multiply(id).unwrap();
    assert_eq!(multiplier.api().take_log(), ["multiply 1 2 3 4 5 by algorithm 0"]);
    // As it is without a batch, a bias and a residual; the factors the other way round.
    let plain = Product {
        batch: 1,
        bias: None,
        residual: None,
        left: Matrix { is_transposed: true, ..matrix(0, 16) },
        right: matrix(1, 32),
        sums: DType::Bf16,
        ..product.clone()
    };
    multiplier.prepare(&plain, &pointers, Workspace::default()).unwrap().unwrap();
    assert_eq!(
        multiplier.api().take_log(),
        [
            "7 = matmul 68 0",
            "7.3 = 1",
            "7.4 = 1",
            "7.7 = 1",
            "8 = layout 14 30x20 32",
            "9 = layout 14 10x30 16",
            "10 = layout 14 20x10 40",
            "11 = layout 14 20x10 40",
            "12 = preference",
            "12.1 = 0",
            "12.3 = 2",
            "12.5 = 16",
            "12.6 = 256",
            "12.7 = 256",
            "12.8 = 256",
            "find 7 8 9 10 11 by 12",
            "destroy 12",
        ]
    );
    assert_eq!(multiplier.api().n_objects(), 11, "a handle, and five of each product");
    // What is refused leaves nothing behind.
    let wrong = Product { left: matrix(0, 29), ..product.clone() };
    let error = multiplier.prepare(&wrong, &pointers, workspace).unwrap_err().to_string();
    assert!(
        error.starts_with("cannot look for an algorithm: cuBLASLt says CUBLAS_STATUS_"),
        "{error}"
    );
    assert_eq!(multiplier.api().n_objects(), 11);
    let error = multiplier.prepare(&product, &pointers[..4], workspace).unwrap_err().to_string();
    assert_eq!(error, "a product that is not of a launch with 4 pointers");

    let mut unable = Multiplier::new(LtModel::unable()).unwrap();
    assert_eq!(unable.prepare(&product, &pointers, workspace).unwrap(), None);
    assert_eq!(unable.api().n_objects(), 1, "the handle");
}

#[test]
fn the_table_of_a_tuning_says_which_products_the_library_takes() {
    let mut g = Typed::new(DType::Bf16);
    let (x, first) = (g.input("x", &[40, 48]), g.param("first", &[64, 48]));
    let second = g.param("second", &[72, 64]);
    let hidden = g.b.matmul(x, first, false, true).unwrap();
    let output = g.b.matmul(hidden, second, false, true).unwrap();
    let graph = g.b.finish(&[output]);
    let given = cuda_tests::given("table", &graph, (-1.0, 1.0));
    let tiles: Tiles =
        "sm_80 matmul 1 x 40 x 72 x 64 = tensor 64x64x64 4, cublaslt".parse().unwrap();
    let target = Target { tiles: Some(Arc::new(tiles)), ..cuda_tests::target(GPU) };
    let engine = engine(&compiler::compile(graph, &target).unwrap(), None);
    let faster: Vec<bool> = products(&engine).iter().map(|product| product.is_faster).collect();
    assert_eq!(faster, [false, true]);
    for (products, expected) in
        [(Products::Own, [0, 2]), (Products::Measured, [1, 1]), (Products::Library, [2, 0])]
    {
        let (_, counts) = run(&engine, &given, GPU, products).unwrap();
        assert_eq!(counts, expected, "{products:?}");
    }
}

#[test]
fn a_workspace_is_declared_within_the_limit_and_held_where_it_is_used() {
    let graph = plain_sites::sites(DType::Bf16).remove(0).graph;
    let given = cuda_tests::given("workspace", &graph, (-1.0, 1.0));
    let plan = compile(&graph);
    let held = plan.held_bytes();
    let declared = |memory| engine(&plan, memory).programs[0].workspace_bytes;
    assert_eq!([None, Some(held + 5000), Some(held)].map(declared), [4 << 20, 5000, 0]);
    for (memory, products, expected) in [
        (None, Products::Own, 0),
        (None, Products::Measured, 0),
        (Some(held + 5000), Products::Library, 5000),
        (Some(held), Products::Library, 0),
    ] {
        let engine = Arc::new(engine(&plan, memory));
        let device = Box::new(device(Library::Model, &Arc::default(), GPU));
        let store = WeightStore::new(Table(given.clone()));
        let session = Session::with_products(device, engine, &[], &store, products).unwrap();
        assert_eq!(session.workspace_bytes(), expected, "{memory:?} {products:?}");
        let id = session.find("program").unwrap();
        assert_eq!(session.uses_library(id, 0), products == Products::Library);
    }
}

#[test]
fn a_library_that_is_missing_or_unable_is_told_once() {
    let graph = plain_sites::sites(DType::Bf16).remove(0).graph;
    let tiles: Tiles =
        "sm_80 matmul 1 x 40 x 72 x 48 = tensor 64x64x64 4, cublaslt".parse().unwrap();
    let target = Target { tiles: Some(Arc::new(tiles)), ..cuda_tests::target(GPU) };
    let plan = Arc::new(compiler::compile(graph.clone(), &target).unwrap());
    let engine = Arc::new(engine(&plan, None));
    let given = cuda_tests::given("missing", &graph, (-1.0, 1.0));
    let store = WeightStore::new(Table(given.clone()));
    let bind = |library, products| {
        let traffic: Arc<Mutex<Traffic>> = Arc::default();
        let of_device = Arc::clone(&traffic);
        let open = move || {
            let device = device(library, &of_device, GPU).with_graphs(Graphs::Recorded);
            Ok(Box::new(device) as Box<dyn Device>)
        };
        let backend = EngineBackend::new(Arc::clone(&engine), Box::new(open));
        let backend = backend.with_products(products);
        let ran = backend.bind(Arc::clone(&plan), &store, None).and_then(|mut runner| {
            runner.write_input("x", &given["x"].to_bytes())?;
            runner.run(Control::default())?;
            runner.run(Control::default())
        });
        let ran = ran.map_err(|error| error.to_string());
        (ran, backend.take_notes(), traffic)
    };
    let (ran, notes, traffic) = bind(Library::Model, Products::Library);
    assert_eq!((ran, notes), (Ok(()), vec![]));
    let expected = [2, 0, 2];
    let traffic = seen(&traffic);
    let counts = [traffic.n_graphs, traffic.n_launches, traffic.n_products];
    assert_eq!(counts, expected, "products are recorded like launches");

    let (ran, notes, traffic) = bind(Library::Unable, Products::Library);
    assert_eq!(ran, Ok(()));
    assert!(notes[0].contains("1 of 1 products are computed by the engine's kernels"), "{notes:?}");
    assert_eq!(seen(&traffic).n_products, 0);

    let missing =
        "the emulated device computes no products by cuBLASLt: use the engine's own kernels";
    let (ran, ..) = bind(Library::None, Products::Library);
    assert!(ran.as_ref().unwrap_err().contains(missing), "{ran:?}");
    let (ran, notes, _) = bind(Library::None, Products::Measured);
    assert_eq!(ran, Ok(()));
    assert!(notes[0].contains("measured to be faster") && notes[0].ends_with(missing), "{notes:?}");
    let (ran, notes, _) = bind(Library::None, Products::Own);
    assert_eq!((ran, notes), (Ok(()), vec![]));
}

#[test]
fn the_embedded_model_computes_the_same_with_and_without_the_library() {
    let model = embedded();
    let scheduler = Scheduler::new(SchedulerKind::Iddpm, 2, 2.5, None, &model.transformer).unwrap();
    let request = Request {
        rows: 1,
        num_frames: 2,
        height: 64,
        width: 64,
        fps: 8.0,
        dtype: DType::Bf16,
        text_dtype: DType::Bf16,
        frame_mask: false,
    };
    for gpu in [Gpu(80), Gpu(90)] {
        let target = cuda_tests::target(gpu);
        let plans = Plans::compile(&model, &scheduler, &request, &target).unwrap();
        for (name, plan) in [("text", &plans.text), ("denoise", &plans.denoise)] {
            let engine = engine(plan, None);
            let made_up = MadeUp::of(&plan.graph);
            let mut given: BTreeMap<String, Tensor> = BTreeMap::new();
            for (_, name) in plan.graph.params() {
                let (ty, bytes) = made_up.tensor(name).unwrap().unwrap();
                given.insert(name.to_string(), Tensor::from_bytes(ty, &bytes).unwrap());
            }
            for port in &plan.inputs {
                let bytes = MadeUp::input(&port.ty);
                let tensor = Tensor::from_bytes(port.ty.clone(), &bytes).unwrap();
                given.insert(port.name.to_string(), tensor);
            }
            let steps = plan.steps.iter();
            let n_products = steps.filter(|step| step.kernel.def().name() == "matmul").count();
            let expected = ops::eval(&plan.graph, &given, Rounding::Exact).unwrap().remove(0);
            let (own, [none, _]) = run(&engine, &given, gpu, Products::Own).unwrap();
            let (found, [n, _]) = run(&engine, &given, gpu, Products::Library).unwrap();
            assert_eq!((none, n), (0, products(&engine).len()));
            assert!(3 * n > n_products, "{name}: {n} of {n_products} products are plain");
            let distance = |tensor: &Tensor| relative_l2(tensor.as_floats(), expected.as_floats());
            let [own, library] = [&own, &found].map(distance);
            println!(
                "{gpu} {name}: {n} of {n_products} products, {library:.2e} and {own:.2e} from the ops"
            );
            assert!(library < 1.2 * own + 1e-4, "{gpu} {name}: {library}, own {own}");
        }
    }
}
