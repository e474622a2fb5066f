//! The GPU against the emulated device. Where there is no GPU, only that is shown.

#![allow(clippy::unwrap_used, reason = "a failing test may panic anywhere")]
#![allow(clippy::print_stdout, reason = "what was not compared is said")]

mod common;

use std::sync::Arc;

use common::{N, checkpoint, engine, to_bytes};
use cuda::{Device, Driver, Emulated, Error, Session};
use emulator::Options;
use engine::Arch;
use ops::DType;
use runtime::WeightStore;

/// The first GPU.
fn gpu() -> Option<Box<dyn Device>> {
    match Driver::open(0) {
        Ok(driver) => Some(Box::new(driver)),
        Err(error @ (Error::NoDriver { .. } | Error::NoDevice { .. })) => {
            println!("not compared: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn session(device: Box<dyn Device>) -> Session {
    let store = WeightStore::new(checkpoint(DType::Bf16));
    Session::new(device, Arc::new(engine(&[1, 0])), &[], &store).unwrap()
}

fn input() -> Vec<u8> {
    to_bytes(&(0..N).map(|i| i as f32 / 7.0).collect::<Vec<f32>>())
}

#[test]
fn a_gpu_gives_the_bytes_of_the_emulated_device_with_and_without_a_graph() {
    let Some(device) = gpu() else { return };
    let mut emulated = session(Box::new(Emulated::new(Arch::of_device(9, 0), Options::default())));
    let mut session = session(device);
    let outputs = |session: &mut Session| {
        ["two steps", "one step"].map(|name| {
            let program = session.find(name).unwrap();
            session.write_input(program, "x", &input()).unwrap();
            let time = session.run(program).unwrap();
            assert!(!time.is_zero());
            let output = session.program(program).outputs[0].name.clone();
            session.read_output(program, &output).unwrap()
        })
    };
    let expected = outputs(&mut emulated);
    assert_eq!(outputs(&mut session), expected);
    for name in ["two steps", "one step"] {
        let program = session.find(name).unwrap();
        session.capture(program).unwrap();
    }
    assert_eq!(outputs(&mut session), expected);
    let program = session.find("two steps").unwrap();
    session.write_input(program, "x", &input()).unwrap();
    let times = session.profile(program).unwrap();
    assert!(times.len() == 2 && times.iter().all(|time| !time.is_zero()), "{times:?}");
}

#[test]
fn a_gpu_carries_outputs_as_the_emulated_device_does() {
    let Some(device) = gpu() else { return };
    let carried = |session: &mut Session, captures: bool| {
        let program = session.find("two steps").unwrap();
        session.carry(program, "y", "x").unwrap();
        if captures {
            session.capture(program).unwrap();
        }
        session.write_input(program, "x", &input()).unwrap();
        for _ in 0..5 {
            session.start(program).unwrap();
        }
        session.read_output(program, "y").unwrap()
    };
    let mut emulated = session(Box::new(Emulated::new(Arch::of_device(9, 0), Options::default())));
    assert_eq!(carried(&mut session(device), true), carried(&mut emulated, false));
}

#[test]
fn bytes_come_back_from_a_gpu_as_they_were_sent() {
    let Some(mut device) = gpu() else { return };
    // Several buffers of staging, the last one partly filled.
    let bytes: Vec<u8> =
        (0..50_000_001u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let address = device.alloc("test", bytes.len() as u64 + 3).unwrap();
    device.upload(address + 3, &bytes).unwrap();
    device.zero(address, 3).unwrap();
    let copy = device.alloc("test", 1 << 20).unwrap();
    device.copy(address + 3, copy, 1 << 20).unwrap();
    let mut part = vec![1; 1 << 20];
    device.download(copy, &mut part).unwrap();
    assert!(part == bytes[..1 << 20]);
    // Many small ones, one after the other, in the order of the calls.
    for at in 0..70_000u64 {
        device.upload(copy, &at.to_le_bytes()).unwrap();
    }
    device.download(copy, &mut part[..8]).unwrap();
    assert_eq!(part[..8], 69_999u64.to_le_bytes());
    let mut found = vec![1; bytes.len() + 3];
    device.download(address, &mut found).unwrap();
    assert!(found[..3] == [0; 3] && found[3..] == bytes);
    let error = device.upload(address + 4, &bytes).unwrap_err().to_string();
    assert!(error.contains("not inside of an allocation"), "{error}");
    let error = device.alloc("test", 1 << 43).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
}

#[test]
fn text_that_a_driver_cannot_compile_is_told_with_its_reason() {
    let Some(mut device) = gpu() else { return };
    let mut kernel = engine(&[]).kernels.remove(0);
    kernel.images[0].bytes = b".version 8.0\n.target sm_80\nnonsense".to_vec().into();
    let error = device.load(&kernel).unwrap_err().to_string();
    assert!(error.starts_with("cannot load kernel `map` for sm_80"), "{error}");
    assert!(error.contains("CUDA_ERROR_INVALID_PTX") && error.contains("nonsense"), "{error}");
    let mut kernel = engine(&[]).kernels.remove(0);
    kernel.entry = "missing".into();
    let error = device.load(&kernel).unwrap_err().to_string();
    assert!(error.contains("find entry `missing` of kernel `map`"), "{error}");
}
