//! Engine programs on the emulated device, and what is said when engine, weights and device do not fit.

#![allow(clippy::unwrap_used, reason = "a failing test may panic anywhere")]

mod common;

use std::sync::Arc;

use common::{
    N, SHAPE, Tensors, checkpoint, constant, engine, engine_for, to_bytes, to_f32s, ty, weight,
};
use cuda::{Device, Driver, Emulated, Error, Session};
use emulator::{Arrival, Options, Order};
use engine::{Arch, Engine, ImageKind};
use ops::DType;
use runtime::WeightStore;

fn device() -> Box<dyn Device> {
    Box::new(Emulated::new(Arch::of_device(8, 0), Options::default()))
}

fn bind(engine: &Engine, names: &[&str], weights: Tensors) -> Result<Session, Error> {
    // Through a file, as everybody else does.
    let engine = Engine::from_bytes(engine.to_bytes().unwrap()).unwrap();
    Session::new(device(), Arc::new(engine), names, &WeightStore::new(weights))
}

fn session() -> Session {
    bind(&engine(&[]), &[], checkpoint(DType::F32)).unwrap()
}

fn input() -> Vec<f32> {
    (0..N).map(|i| (i % 17) as f32 - 8.0).collect()
}

/// What `two steps` gives for a weight in device order.
fn expected(weight: &[f32]) -> Vec<f32> {
    let t: Vec<f32> = input().iter().zip(weight).map(|(x, w)| 2.0 * x + w).collect();
    t.iter().zip(constant()).map(|(t, c)| 0.5 * t + c).collect()
}

fn run(session: &mut Session) -> Vec<f32> {
    let program = session.find("two steps").unwrap();
    session.write_input(program, "x", &to_bytes(&input())).unwrap();
    session.run(program).unwrap();
    to_f32s(&session.read_output(program, "y").unwrap())
}

#[test]
fn a_program_computes_its_outputs_in_every_order_of_warps() {
    for order in [Order::Forward, Order::Reverse, Order::Random(3)] {
        let options = Options {
            order,
            arrival: Arrival::Early,
            checks_block_races: true,
            ..Options::default()
        };
        let device = Box::new(Emulated::new(Arch::of_device(8, 6), options));
        let store = WeightStore::new(checkpoint(DType::F32));
        let mut session = Session::new(device, Arc::new(engine(&[])), &[], &store).unwrap();
        assert_eq!(run(&mut session), expected(&weight()));
        assert_eq!(run(&mut session), expected(&weight()));
    }
}

#[test]
fn inputs_keep_their_values_until_they_are_written_again() {
    let mut session = session();
    let (two, one) = (session.find("two steps").unwrap(), session.find("one step").unwrap());
    assert_eq!(run(&mut session), expected(&weight()));
    let output = |session: &mut Session| to_f32s(&session.read_output(two, "y").unwrap());
    // The output took the place of the input in the arena, and now the other program has the arena.
    session.write_input(one, "x", &to_bytes(&constant())).unwrap();
    session.run(one).unwrap();
    session.run(two).unwrap();
    assert_eq!(output(&mut session), expected(&weight()));
    session.write_input(two, "x", &to_bytes(&[0.0; N])).unwrap();
    // What ran before is not changed by it.
    assert_eq!(output(&mut session), expected(&weight()));
    session.run(two).unwrap();
    let of_zeros: Vec<f32> = weight().iter().zip(constant()).map(|(w, c)| 0.5 * w + c).collect();
    assert_eq!(output(&mut session), of_zeros);
}

#[test]
fn an_output_is_carried_into_the_next_run() {
    let mut session = session();
    let program = session.find("two steps").unwrap();
    session.carry(program, "y", "x").unwrap();
    session.write_input(program, "x", &to_bytes(&input())).unwrap();
    // y = x + w / 2 + c
    let step = |x: f32, i: usize| 0.5 * (2.0 * x + weight()[i]) + constant()[i];
    let mut x = input();
    for _ in 0..3 {
        session.start(program).unwrap();
        x = x.iter().enumerate().map(|(i, &x)| step(x, i)).collect();
    }
    assert_eq!(to_f32s(&session.read_output(program, "y").unwrap()), x);
    // Whichever way it runs.
    session.run(program).unwrap();
    session.run_stepwise(program).unwrap();
    session.profile(program).unwrap();
    for _ in 0..3 {
        x = x.iter().enumerate().map(|(i, &x)| step(x, i)).collect();
    }
    assert_eq!(to_f32s(&session.read_output(program, "y").unwrap()), x);
    assert_eq!(run(&mut session), expected(&weight()), "what is written wins");
}

#[test]
fn only_what_has_the_type_of_an_input_is_carried_into_it() {
    let mut engine = engine(&[]);
    engine.programs[0].outputs[0].ty = ty(DType::F32, &[N]);
    let mut session = bind(&engine, &[], checkpoint(DType::F32)).unwrap();
    let program = session.find("two steps").unwrap();
    let mut said = |output, input| session.carry(program, output, input).unwrap_err().to_string();
    assert_eq!(
        said("y", "x"),
        "input `x` of program `two steps`: f32[30, 10], but output `y`, which it takes, is f32[300]"
    );
    assert!(said("x", "x").contains("the program's outputs are y"));
    assert!(said("y", "y").contains("the program's inputs are x"));
}

#[test]
fn weights_are_converted_and_put_into_the_order_of_axes() {
    let [rows, cols] = SHAPE;
    let truncated: Vec<f32> =
        weight().iter().map(|w| f32::from_bits(w.to_bits() & 0xffff_0000)).collect();
    let transposed: Vec<f32> = (0..N).map(|i| truncated[i % rows * cols + i / rows]).collect();
    assert_ne!(truncated, weight());
    let mut session = bind(&engine(&[1, 0]), &[], checkpoint(DType::Bf16)).unwrap();
    assert_eq!(run(&mut session), expected(&transposed));
}

#[test]
fn programs_share_the_arena_one_after_the_other() {
    let mut session = session();
    let two = session.find("two steps").unwrap();
    let one = session.find("one step").unwrap();
    assert_eq!((session.arena_bytes(), session.weight_bytes()), (8 * N as u64, 8 * N as u64 + 64));
    assert_eq!(run(&mut session), expected(&weight()));
    session.write_input(one, "x", &to_bytes(&input())).unwrap();
    session.run(one).unwrap();
    // The arena is the other program's now.
    let error = session.read_output(two, "y").unwrap_err().to_string();
    assert!(error.contains("run it first"), "{error}");
    let z: Vec<f32> = input().iter().zip(constant()).map(|(x, c)| 2.0 * x + c).collect();
    assert_eq!(to_f32s(&session.read_output(one, "z").unwrap()), z);
}

#[test]
fn a_program_without_weights_needs_none() {
    let session = bind(&engine(&[]), &["one step"], Tensors::default()).unwrap();
    assert_eq!(session.weight_bytes(), 4 * N as u64);
    let error = session.find("two steps").map(|_| ()).unwrap_err().to_string();
    assert_eq!(error, "no program `two steps`; choose one of `one step`");
}

#[test]
fn every_step_is_timed() {
    let mut session = session();
    let program = session.find("two steps").unwrap();
    session.write_input(program, "x", &to_bytes(&input())).unwrap();
    let times = session.profile(program).unwrap();
    assert_eq!(times.len(), 2);
    assert!(times.iter().all(|time| !time.is_zero()), "{times:?}");
    assert_eq!(to_f32s(&session.read_output(program, "y").unwrap()), expected(&weight()));
}

#[test]
fn inputs_and_outputs_have_their_time() {
    let mut session = session();
    let program = session.find("two steps").unwrap();
    let mut said = |call: &mut dyn FnMut(&mut Session) -> Result<(), Error>| {
        call(&mut session).unwrap_err().to_string()
    };
    let x = to_bytes(&input());
    let of = |what: &str| format!("{what} of program `two steps`: ");
    assert_eq!(
        said(&mut |s| s.run(program).map(drop)),
        of("input `x`") + "never written; call `write_input` first"
    );
    assert_eq!(
        said(&mut |s| s.read_output(program, "y").map(drop)),
        of("output `y`") + "the program has not run since the arena was last written; run it first"
    );
    assert_eq!(
        said(&mut |s| s.write_input(program, "x", &x[4..])),
        of("input `x`") + "1196 bytes, expected 1200 for f32[30, 10]"
    );
    assert_eq!(
        said(&mut |s| s.write_input(program, "z", &x)),
        of("input `z`") + "unknown; the program's inputs are x"
    );
    session.write_input(program, "x", &x).unwrap();
    session.run(program).unwrap();
    let error = session.read_output_into(program, "y", &mut [0; 4]).unwrap_err().to_string();
    assert_eq!(error, of("output `y`") + "room for 4 bytes, expected 1200");
}

#[test]
fn weights_that_do_not_fit_are_named() {
    let said = |weights| bind(&engine(&[]), &[], weights).unwrap_err().to_string();
    assert_eq!(said(Tensors::default()), "weight `w` is missing");
    let mut other = checkpoint(DType::F32);
    other.0.insert("w".into(), (ty(DType::F32, &[300]), vec![0; 1200]));
    assert_eq!(said(other), "weight `w` is f32[300], expected f32[30, 10]");
    let mut other = checkpoint(DType::F32);
    other.0.insert("w".into(), (ty(DType::I32, &SHAPE), vec![0; 1200]));
    assert_eq!(said(other), "weight `w` is i32[30, 10], expected f32[30, 10]");
}

/// A session of `engine` on the emulated device of capability `major.minor`.
fn on(engine: &Engine, (major, minor): (u32, u32)) -> Result<Session, Error> {
    let engine = Engine::from_bytes(engine.to_bytes().unwrap()).unwrap();
    let device = Box::new(Emulated::new(Arch::of_device(major, minor), Options::default()));
    Session::new(device, Arc::new(engine), &[], &WeightStore::new(checkpoint(DType::F32)))
}

#[test]
fn a_device_runs_the_programs_of_its_best_target() {
    let engine = engine_for("sm_90a", 0);
    let halved = expected(&weight());
    // What the other target's second step makes of `t`.
    let quartered: Vec<f32> =
        halved.iter().zip(constant()).map(|(y, c)| (y - c) / 2.0 + c).collect();
    for (device, expected) in
        [((8, 0), &halved), ((8, 9), &halved), ((9, 0), &quartered), ((10, 0), &halved)]
    {
        let mut session = on(&engine, device).unwrap();
        let program = session.find("two steps").unwrap();
        let is_specific = session.program(program).target.is_specific;
        assert_eq!(is_specific, device == (9, 0), "{device:?}");
        let found = run(&mut session);
        let error = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(error < 1e-4, "{device:?}: {error}");
    }
}

#[test]
fn an_engine_for_other_devices_is_refused_with_what_it_has() {
    let said = |engine: &Engine, device| on(engine, device).unwrap_err().to_string();
    let engine = engine_for("sm_90a", 0);
    assert_eq!(
        said(&engine, (7, 5)),
        "the emulated device has compute capability 7.5, and the engine is for sm_80, sm_90a: compile the model \
         for it"
    );
    // A target whose blocks are too large for the device is passed over, or named if it is the only one.
    let mut engine = engine_for("sm_86", 120 << 10);
    let session = on(&engine, (8, 9)).unwrap();
    assert_eq!(session.program(session.find("two steps").unwrap()).target.to_string(), "sm_80");
    engine.programs.drain(..2);
    assert_eq!(
        said(&engine, (8, 9)),
        "the emulated device has compute capability 8.9, and the engine is for sm_86 (a block of `map` needs \
         122880 bytes of shared memory of 101376): compile the model for it"
    );
    engine.programs.clear();
    assert!(said(&engine, (9, 0)).contains("is for no device"));
}

#[test]
fn a_device_that_takes_no_machine_code_is_refused_an_engine_of_nothing_else() {
    let mut engine = engine(&[]);
    for kernel in &mut engine.kernels {
        kernel.images[0].kind = ImageKind::Cubin;
    }
    let device = Box::new(Emulated::new(Arch::of_device(8, 0), Options::default()));
    let store = WeightStore::new(checkpoint(DType::F32));
    let error = Session::new(device, Arc::new(engine), &[], &store).unwrap_err().to_string();
    assert!(error.contains("is for sm_80 (no code of `map` is for it)"), "{error}");
}

#[test]
fn a_fault_is_told_with_its_step() {
    let mut engine = engine(&[]);
    // One block more, and no bound: beyond the last element.
    engine.kernels[1].info[0] |= 0xffff << 32;
    engine.programs[0].steps[1].launches[0].grid[0] = 30;
    let mut session = bind(&engine, &[], checkpoint(DType::F32)).unwrap();
    let program = session.find("two steps").unwrap();
    session.write_input(program, "x", &to_bytes(&input())).unwrap();
    let error = session.run_stepwise(program).unwrap_err().to_string();
    assert!(error.starts_with("program `two steps`, step 1 (map, second): cannot run"), "{error}");
    assert!(session.read_output(program, "y").is_err());
}

#[test]
fn a_device_without_graphs_says_so_and_runs_on() {
    let mut session = session();
    let program = session.find("two steps").unwrap();
    let error = session.capture(program).unwrap_err();
    assert!(matches!(error, Error::NoGraphs { .. }), "{error}");
    assert_eq!(error.to_string(), "the emulated device has no graphs of launches: run without one");
    assert_eq!(run(&mut session), expected(&weight()));
}

#[test]
fn a_machine_without_a_driver_is_told_what_is_missing() {
    match Driver::list() {
        Err(error @ Error::NoDriver { .. }) => {
            assert!(error.to_string().contains("libcuda.so.1") || cfg!(windows), "{error}");
            assert!(matches!(Driver::open(0), Err(Error::NoDriver { .. })));
        }
        // A machine with a driver has GPUs up to a number.
        found => {
            let n_devices = found.unwrap().len();
            assert!(matches!(Driver::open(n_devices), Err(Error::NoDevice { .. })));
        }
    }
}
