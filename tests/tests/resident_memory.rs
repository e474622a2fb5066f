//! What a process that runs a plan takes from the system at its highest: the plan's arena and
//! weights, and little else. A child process loads a model of ordinary width from a file, and the
//! system's own count of its resident memory is compared with the plan.
#![allow(clippy::unwrap_used, reason = "a failing test may panic anywhere")]
#![cfg(target_os = "linux")]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use checkpoint::{Checkpoint, TensorView};
use compiler::Plan;
use kernels::{Isa, Pool};
use models::config::Stdit2;
use models::{Bucket, stdit2};
use ops::{DType, TensorType};
use runtime::{Session, WeightSource, WeightStore};
use serde_json::json;
use tests::compiled::target;

/// Names the checkpoint in a child process, which is this test run again.
const CHILD: &str = "KINOGRAPH_RESIDENT_MEMORY_OF";

/// What the program itself, its stacks and the graph may take besides the plan.
const MARGIN: usize = 64 << 20;

struct Source(Checkpoint);

impl WeightSource for Source {
    fn tensor(&self, name: &str) -> Result<Option<(TensorType, Cow<'_, [u8]>)>, String> {
        let view = self.0.tensor(name).map_err(|error| error.to_string())?;
        let dtype = match view.dtype {
            checkpoint::DType::F32 => DType::F32,
            checkpoint::DType::BF16 => DType::Bf16,
            other => return Err(format!("{other:?}")),
        };
        Ok(Some((
            TensorType::new(dtype, view.shape).expect("the file has small tensors"),
            view.bytes,
        )))
    }

    fn release(&self, name: &str) {
        self.0.release(name);
    }
}

/// STDiT-2 XL/2 with two of its blocks.
fn config() -> Stdit2 {
    Stdit2::from_json(&json!({ "input_sq_size": 512, "qk_norm": true, "depth": 2 }))
        .expect("the configuration is valid")
}

fn plan() -> Plan {
    let bucket = Bucket::new(1, [16, 18, 32], [144.0, 256.0], 40);
    let graph = stdit2::graph(&config(), &bucket).expect("the bucket fits");
    compiler::compile(graph, &target(Isa::detect(), 2)).expect("every model has kernels")
}

/// A checkpoint of the model in `dtype`, every element a small number.
fn write(path: &Path, dtype: checkpoint::DType) {
    let mut tensors = BTreeMap::new();
    for (name, shape) in stdit2::params(&config()).expect("the model has parameters") {
        let count: usize = shape.iter().product();
        let bytes: Vec<u8> = match dtype {
            checkpoint::DType::F32 => 0.01f32.to_le_bytes().repeat(count),
            _ => half::bf16::from_f32(0.01).to_le_bytes().repeat(count),
        };
        tensors.insert(name, TensorView { dtype, shape, bytes: bytes.into() });
    }
    checkpoint::write_safetensors(path, &tensors, &BTreeMap::new())
        .expect("the folder can be written");
}

/// The largest resident memory that this process had, in bytes.
fn peak_resident_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux states the peak");
    line.trim()
        .strip_suffix(" kB")
        .expect("the peak is in kB")
        .trim()
        .parse::<usize>()
        .expect("the peak is in kB")
        * 1024
}

#[test]
fn a_run_takes_little_more_than_its_plan() {
    let plan = plan();
    if let Some(path) = std::env::var_os(CHILD) {
        let weights = WeightStore::new(Source(Checkpoint::open(Path::new(&path)).unwrap()));
        let pool = Arc::new(Pool::new(plan.target.threads).unwrap());
        let mut session = Session::new(Arc::new(plan), &weights, pool).unwrap();
        let inputs: Vec<(String, Vec<u8>)> = session
            .plan()
            .inputs
            .iter()
            .map(|port| (port.name.to_string(), vec![0; port.ty.bytes()]))
            .collect();
        let inputs: Vec<(&str, &[u8])> =
            inputs.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
        session.run(&inputs).unwrap();
        println!("peak {} bytes", peak_resident_bytes());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    // As the plan reads them, and to be converted while they are loaded.
    for dtype in [checkpoint::DType::F32, checkpoint::DType::BF16] {
        write(&path, dtype);
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_run_takes_little_more_than_its_plan", "--nocapture"])
            .env(CHILD, &path)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&child.stdout);
        let peak = text.split("peak ").nth(1).and_then(|rest| rest.split(' ').next());
        let peak: usize = peak.unwrap_or_else(|| panic!("{child:?}")).parse().unwrap();
        let planned = plan.held_bytes();
        assert!(peak <= planned + MARGIN, "{dtype:?}: {peak} bytes, planned {planned}");
        assert!(peak > planned / 2, "{dtype:?}: {peak} bytes, planned {planned}: not all was used");
    }
}
