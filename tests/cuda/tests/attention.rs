//! Attention, on the emulated device against the interpreter.
#![allow(clippy::unwrap_used, reason = "a failing test may panic anywhere")]

use cuda_tests::attention_sites::{
    any_head, examples, long, masked_and_biased, parts, prepared, short, wide,
};
use cuda_tests::sites::Site;
use kernels::Kernel;
use kernels::cuda::{Function, Gpu};
use ops::{Builder, DType, TensorType};

fn check(sites: Vec<Site>, gpu: Gpu) {
    for site in sites {
        cuda_tests::check(&site, gpu);
    }
}

#[test]
fn every_example_of_the_op_is_taken() {
    check(examples(), Gpu(80));
}

#[test]
fn long_sequences_pass_in_tiles() {
    check(long(), Gpu(80));
}

#[test]
fn short_sequences_have_a_warp_each() {
    check(short(), Gpu(80));
}

#[test]
fn parts_of_one_product_are_read_where_they_lie() {
    check(parts(), Gpu(80));
}

#[test]
fn masked_keys_take_no_part_and_biases_are_added() {
    check(masked_and_biased(), Gpu(80));
}

#[test]
fn f32_rows_and_odd_heads_run_on_ordinary_units() {
    check(any_head(), Gpu(80));
}

#[test]
fn wide_heads_run_on_every_generation() {
    // Tiles of 32 keys, no tensor cores where shared memory is small, and tiles of 64.
    for (gpu, site) in [80, 90, 89, 80].map(Gpu).into_iter().zip(wide()) {
        cuda_tests::check(&site, gpu);
    }
}

#[test]
fn rows_are_normalized_weighted_and_rotated_before() {
    check(prepared(), Gpu(80));
}

/// The last launch of the only attention of `[B, S, H, D]` with `sk` keys.
fn function(gpu: Gpu, [batch, sq, h, d]: [usize; 4], sk: usize, masked: bool) -> Function {
    let mut b = Builder::new("attention");
    let ty = |dtype: DType, shape: &[usize]| TensorType::new(dtype, shape).unwrap();
    let q = b.input("q", ty(DType::Bf16, &[batch, sq, h, d]));
    let [k, v] = ["k", "v"].map(|name| b.input(name, ty(DType::Bf16, &[batch, sk, h, d])));
    let mask = masked.then(|| b.input("mask", ty(DType::Bool, &[batch, sk])));
    let y = b.attention([q, k, v], None, mask, 0.1).unwrap();
    let graph = b.finish(&[y]);
    let plan = compiler::compile(graph, &cuda_tests::target(gpu)).unwrap();
    let Kernel::Cuda(kernel) = &plan.steps.last().unwrap().kernel else { panic!("a GPU's plan") };
    assert_eq!(kernel.name, "attention");
    kernel.launches.last().unwrap().function.clone()
}

#[test]
fn registers_and_shared_memory_leave_room_for_two_blocks() {
    for gpu in [Gpu(80), Gpu(90)] {
        for (shape, sk, masked) in [
            ([1, 4096, 16, 72], 4096, false),
            ([1, 4096, 16, 72], 200, false),
            ([1, 512, 64, 64], 512, true),
            ([256, 16, 16, 72], 16, false),
            ([1, 64, 1, 128], 64, false),
            ([1, 1024, 1, 512], 1024, false),
        ] {
            let function = function(gpu, shape, sk, masked);
            let (source, compiled) = cuda_tests::compile(&function, gpu);
            let resources = compiled.resources;
            let what =
                format!("{gpu} {shape:?} {sk}: {resources:?}, {} shared", source.shared_bytes);
            assert_eq!((resources.spill_bytes, resources.stack_bytes), (0, 0), "{what}");
            let threads: u32 = function.block().iter().product();
            // A wide head's queries, keys and values leave no room for another block's.
            let blocks = if function.name() == "attention_wide" { 1 } else { 2 };
            let registers = threads * resources.registers.next_multiple_of(8);
            assert!(blocks * registers <= 65536, "{what}");
            // A block takes 1 KiB more than it asks for.
            let shared = source.shared_bytes as usize + 1024;
            assert!(blocks as usize * shared <= gpu.shared_bytes().0, "{what}");
            if function.name() != "attention_fma" {
                for instruction in ["mma.sync", "ldmatrix", "cp.async"] {
                    assert!(compiled.ptx.contains(instruction), "{what}: no {instruction}");
                }
            }
        }
    }
}
