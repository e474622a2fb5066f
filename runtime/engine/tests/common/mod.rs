//! A small engine that has one of everything.

use engine::{
    Arg, Blob, Engine, Image, ImageKind, Kernel, Launch, Matrix, Port, Product, Program, Space,
    Step, Weight,
};
use ops::{DType, TensorType};

/// Code that no device runs: an ELF file for CUDA with one empty section.
pub(crate) fn cubin() -> Vec<u8> {
    let mut bytes = vec![0; 128];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    bytes[18] = 190;
    bytes[40] = 64;
    bytes[58] = 64;
    bytes[60] = 1;
    bytes
}

fn ty(dtype: DType, shape: &[usize]) -> TensorType {
    TensorType::new(dtype, shape).expect("a small shape")
}

/// An engine of one kernel and one program, which is there for `sm_80` and, planned otherwise, for `sm_90a`.
pub(crate) fn small() -> Engine {
    let image = |arch: &str, kind, bytes: Vec<u8>| Image {
        arch: arch.parse().expect("a known name"),
        kind,
        registers: 32,
        spill_bytes: 0,
        bytes: Blob::from(bytes),
    };
    let ptx = b".version 8.0\n.target sm_80\n".to_vec();
    let arg = |space, offset| Arg { space, offset };
    let matrix =
        |pointer, leading| Matrix { pointer, is_transposed: false, leading, batch_stride: 0 };
    // What the launch computes: its weight is stored as the columns of the right factor.
    let product = Product {
        factors: DType::Bf16,
        sums: DType::F32,
        batch: 1,
        rows: 4,
        columns: 4,
        depth: 6,
        left: matrix(0, 6),
        right: Matrix { is_transposed: true, ..matrix(1, 4) },
        result: matrix(3, 4),
        bias: Some(2),
        residual: Some(matrix(3, 4)),
        is_faster: true,
    };
    let program = Program {
        name: "step 240p:16f:9:16".into(),
        target: "sm_80".parse().expect("a known name"),
        arena_bytes: 256,
        workspace_bytes: 4096,
        lower_bound_bytes: 200,
        inputs: vec![
            Port { name: "x".into(), ty: ty(DType::Bf16, &[4, 6]), offset: 0 },
            Port { name: "timestep".into(), ty: ty(DType::F32, &[]), offset: 64 },
        ],
        outputs: vec![Port { name: "y".into(), ty: ty(DType::F32, &[4, 4]), offset: 0 }],
        steps: vec![Step {
            label: "matmul".into(),
            scope: "blocks.0.attn".into(),
            flops: 192,
            bytes: 160,
            scratch_bytes: 48,
            launches: vec![Launch {
                kernel: 0,
                grid: [1, 2, 3],
                args: vec![
                    arg(Space::Arena, 128),
                    arg(Space::Weight(0), 0),
                    arg(Space::Constant(1), 0),
                    arg(Space::Arena, 176),
                ],
                product: Some(product),
            }],
        }],
    };
    let mut specific = program.clone();
    specific.target = "sm_90a".parse().expect("a known name");
    specific.arena_bytes = 512;
    specific.inputs[1].offset = 128;
    Engine {
        created_by: "kino 0.1.0".into(),
        model: "a test".into(),
        dtype: DType::Bf16,
        kernels: vec![Kernel {
            name: "matmul".into(),
            entry: "matmul_0".into(),
            block: [32, 4, 1],
            shared_bytes: 65_536,
            n_pointers: 4,
            info: vec![7, u64::MAX],
            images: vec![
                image("sm_90a", ImageKind::Cubin, cubin()),
                image("sm_80", ImageKind::Cubin, cubin()),
                image("sm_80", ImageKind::Ptx, ptx),
            ],
        }],
        weights: vec![Weight {
            name: "blocks.0.attn.proj.weight".into(),
            ty: ty(DType::Bf16, &[4, 6]),
            axes: vec![1, 0],
            bytes: 64,
        }],
        constants: vec![Blob::from(vec![1, 2, 3, 4]), Blob::from(vec![5; 16])],
        programs: vec![program, specific],
    }
}
