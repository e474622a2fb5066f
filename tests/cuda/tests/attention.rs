//! Attention, on the emulated device against the interpreter.

use std::collections::BTreeMap;

use kernels::Kernel;
use kernels::cuda::{Function, Gpu};
use ops::{Builder, DType, Error, Graph, TensorType, ValueId};
use tests::{Rng, relative_l2};

/// A graph of one body over inputs of these types.
fn graph(
    types: &[(&[usize], DType)],
    build: impl Fn(&mut Builder, &[ValueId]) -> Result<ValueId, Error>,
) -> Graph {
    let mut b = Builder::new("attention");
    let args: Vec<ValueId> = types
        .iter()
        .enumerate()
        .map(|(i, (shape, dtype))| {
            b.input(&i.to_string(), TensorType::new(*dtype, *shape).unwrap())
        })
        .collect();
    let output = build(&mut b, &args).unwrap();
    b.finish(&[output])
}

/// Runs it and compares.
fn check(name: &str, graph: &Graph, gpu: Gpu, most: f64) {
    let mut rng = Rng::named(name);
    let given: BTreeMap<_, _> = graph
        .inputs()
        .map(|(value, input)| (input.to_string(), rng.tensor(graph.ty(value), (-2.0, 2.0))))
        .collect();
    let found = cuda_tests::run(graph, &given, gpu);
    let expected = cuda_tests::expected(graph, &given);
    let error = relative_l2(found[0].as_floats(), expected[0].as_floats());
    assert!(error < most, "{name}: {error}");
}

/// bf16 rows and weights: 8 bits each.
const HALF: f64 = 8e-3;

#[test]
fn self_attention_of_long_sequences() {
    // [B, Sq, Sk, H, D]
    for [batch, sq, sk, h, d] in
        [[1, 128, 128, 2, 64], [2, 130, 130, 2, 72], [1, 70, 200, 1, 128], [1, 33, 9, 1, 32]]
    {
        let (q, k): (&[usize], &[usize]) = (&[batch, sq, h, d], &[batch, sk, h, d]);
        let scale = 1.0 / (d as f64).sqrt();
        for dtype in [DType::Bf16, DType::F16] {
            let graph = graph(&[(q, dtype), (k, dtype), (k, dtype)], |b, args| {
                b.attention([args[0], args[1], args[2]], None, None, scale)
            });
            check(&format!("{dtype} {sq} x {sk} x {d}"), &graph, Gpu(80), HALF);
        }
    }
}

#[test]
fn short_sequences_of_many_pairs() {
    // Up to 16 or 32 rows, each warp with a pair of its own; pairs that do not fill the last block.
    for [batch, sq, sk, h, d] in
        [[3, 16, 16, 2, 72], [5, 7, 9, 1, 64], [2, 20, 31, 3, 24], [1, 1, 1, 1, 8]]
    {
        let (q, k): (&[usize], &[usize]) = (&[batch, sq, h, d], &[batch, sk, h, d]);
        let scale = -1.0 / (d as f64).sqrt();
        let graph = graph(&[(q, DType::Bf16), (k, DType::Bf16), (k, DType::Bf16)], |b, args| {
            b.attention([args[0], args[1], args[2]], None, None, scale)
        });
        check(&format!("{batch} x {sq} x {sk} x {d}"), &graph, Gpu(80), HALF);
    }
}

#[test]
fn parts_of_one_product_are_read_where_they_lie() {
    // [B, T, S, 3 H D], attention over S, then over T.
    let (batch, t, s, h, d) = (2, 3, 66, 2, 72);
    let x: &[usize] = &[batch, t, s, 3 * h * d];
    for is_over_time in [false, true] {
        let graph = graph(&[(x, DType::Bf16)], |b, args| {
            let x = b.reshape(args[0], &[batch, t, s, 3, h, d])?;
            let mut parts = vec![];
            for part in 0..3 {
                let y = b.slice_axis(x, 3, part, part + 1)?;
                let y = b.reshape(y, &[batch, t, s, h, d])?;
                let axes = [0, 2, 1, 3, 4];
                parts.push(if is_over_time { b.permute(y, &axes)? } else { y });
            }
            let y = b.attention([parts[0], parts[1], parts[2]], None, None, 0.1)?;
            if is_over_time { b.permute(y, &[0, 2, 1, 3, 4]) } else { Ok(y) }
        });
        check(&format!("parts {is_over_time}"), &graph, Gpu(80), HALF);
    }
}

#[test]
fn masks_and_biases() {
    for [batch, sq, sk, h, d] in
        [[2, 40, 150, 2, 72], [3, 16, 16, 2, 32], [2, 9, 64, 1, 64], [1, 140, 70, 1, 64]]
    {
        let (q, k): (&[usize], &[usize]) = (&[batch, sq, h, d], &[batch, sk, h, d]);
        let (mask, bias): (&[usize], &[usize]) = (&[batch, sk], &[1, h, sq, sk]);
        let half = DType::Bf16;
        let plain = [(q, half), (k, half), (k, half)];
        let name = format!("{batch} x {sq} x {sk} x {d}");
        let masked = graph(&[&plain[..], &[(mask, DType::Bool)]].concat(), |b, args| {
            b.attention([args[0], args[1], args[2]], None, Some(args[3]), 0.2)
        });
        check(&format!("masked {name}"), &masked, Gpu(80), HALF);
        for dtype in [half, DType::F32] {
            let biased = graph(&[&plain[..], &[(bias, dtype)]].concat(), |b, args| {
                let y = b.attention([args[0], args[1], args[2]], Some(args[3]), None, 1.0)?;
                b.cast(y, DType::F32)
            });
            check(&format!("biased {name}"), &biased, Gpu(80), HALF);
        }
        let both = [&plain[..], &[(bias, DType::F32), (mask, DType::Bool)]].concat();
        let both = graph(&both, |b, args| {
            b.attention([args[0], args[1], args[2]], Some(args[3]), Some(args[4]), -0.3)
        });
        check(&format!("both {name}"), &both, Gpu(80), HALF);
    }
}

#[test]
fn any_head_and_type() {
    // f32 rows, wide and odd heads: ordinary units. bf16 rows of f32 operands.
    let f32_limit = 2e-6;
    for ([batch, sq, sk, h, d], dtype, most) in [
        ([1, 33, 70, 2, 72], DType::F32, f32_limit),
        ([2, 5, 7, 2, 12], DType::F32, f32_limit),
        ([1, 34, 66, 1, 512], DType::Bf16, HALF),
        ([2, 9, 11, 2, 7], DType::Bf16, HALF),
    ] {
        let (q, k): (&[usize], &[usize]) = (&[batch, sq, h, d], &[batch, sk, h, d]);
        let (mask, bias): (&[usize], &[usize]) = (&[batch, sk], &[1, h, sq, sk]);
        let name = format!("{dtype} {batch} x {sq} x {sk} x {d}");
        let scale = 1.0 / (d as f64).sqrt();
        let rows = [(q, dtype), (k, dtype), (k, dtype)];
        let plain =
            graph(&rows, |b, args| b.attention([args[0], args[1], args[2]], None, None, scale));
        check(&name, &plain, Gpu(80), most);
        let both = [&rows[..], &[(bias, DType::F32), (mask, DType::Bool)]].concat();
        let both = graph(&both, |b, args| {
            b.attention([args[0], args[1], args[2]], Some(args[3]), Some(args[4]), scale)
        });
        check(&format!("both {name}"), &both, Gpu(80), most);
    }
    let x: &[usize] = &[1, 20, 2, 16];
    let cast = graph(&[(x, DType::F32), (x, DType::Bf16), (x, DType::F32)], |b, args| {
        let (q, v) = (b.cast(args[0], DType::Bf16)?, b.cast(args[2], DType::Bf16)?);
        b.attention([q, args[1], v], None, None, 0.25)
    });
    check("cast rows", &cast, Gpu(80), HALF);
}

#[test]
fn wide_heads() {
    // Tiles of 64 keys where shared memory is large, of 32, and no tensor cores where it is small.
    for (gpu, [sq, sk, d]) in [
        (Gpu(90), [70, 130, 512]),
        (Gpu(80), [66, 40, 512]),
        (Gpu(80), [5, 33, 160]),
        (Gpu(89), [34, 66, 512]),
    ] {
        let (q, k): (&[usize], &[usize]) = (&[2, sq, 1, d], &[2, sk, 1, d]);
        let mask: &[usize] = &[2, sk];
        for dtype in [DType::Bf16, DType::F16] {
            let types = [(q, dtype), (k, dtype), (k, dtype), (mask, DType::Bool)];
            let name = format!("{gpu} {dtype} {sq} x {sk} x {d}");
            let plain = graph(&types[..3], |b, args| {
                b.attention([args[0], args[1], args[2]], None, None, 0.1)
            });
            check(&name, &plain, gpu, HALF);
            let masked = graph(&types, |b, args| {
                let y = b.attention([args[0], args[1], args[2]], None, Some(args[3]), -0.3)?;
                b.cast(y, DType::F32)
            });
            check(&format!("masked {name}"), &masked, gpu, HALF);
        }
    }
}

#[test]
fn rows_are_normalized_weighted_and_rotated_before() {
    for ([batch, sq, sk, h, d], dtype, most) in [
        ([2, 16, 16, 3, 72], DType::Bf16, HALF),
        ([1, 70, 33, 2, 64], DType::Bf16, HALF),
        ([2, 5, 7, 2, 12], DType::F32, 2e-6),
        ([1, 3, 9, 1, 18], DType::Bf16, HALF),
    ] {
        let (q, k): (&[usize], &[usize]) = (&[batch, sq, h, d], &[batch, sk, h, d]);
        let (weight, norm): (&[usize], &[usize]) = (&[1, 1, 1, d], &[d]);
        let (angles_q, angles_k): (&[usize], &[usize]) = (&[sq, d / 2], &[sk, d / 2]);
        let types = [
            (q, dtype),
            (k, dtype),
            (k, dtype),
            (weight, dtype),
            (norm, dtype),
            (angles_q, DType::F32),
            (angles_k, DType::F32),
        ];
        for rope_first in [false, true] {
            let prepared = graph(&types, |b, args| {
                let mut rows = [args[0], args[1]];
                for (i, x) in rows.iter_mut().enumerate() {
                    if rope_first {
                        *x = b.rope(*x, args[5 + i])?;
                    }
                    *x = b.rms_norm(*x, 1e-6)?;
                    let weight = b.reshape(args[3 + i], &[1, 1, 1, d])?;
                    *x = b.mul(*x, weight)?;
                    if !rope_first {
                        *x = b.rope(*x, args[5 + i])?;
                    }
                }
                b.attention([rows[0], rows[1], args[2]], None, None, 0.3)
            });
            let name = format!("prepared {rope_first} {dtype} {sq} x {sk} x {d}");
            check(&name, &prepared, Gpu(80), most);
        }
    }
}

/// The last launch of the only attention of `[B, S, H, D]` with `sk` keys.
fn function(gpu: Gpu, [batch, sq, h, d]: [usize; 4], sk: usize, masked: bool) -> Function {
    let (q, k): (&[usize], &[usize]) = (&[batch, sq, h, d], &[batch, sk, h, d]);
    let mask: &[usize] = &[batch, sk];
    let half = DType::Bf16;
    let types = [(q, half), (k, half), (k, half), (mask, DType::Bool)];
    let graph = graph(&types[..if masked { 4 } else { 3 }], |b, args| {
        b.attention([args[0], args[1], args[2]], None, args.get(3).copied(), 0.1)
    });
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
            ([1, 4096, 16, 72], 120, true),
            ([1, 512, 64, 64], 512, true),
            ([256, 16, 16, 72], 16, false),
            ([1, 1024, 1, 128], 1024, false),
            ([1, 1024, 1, 512], 1024, false),
        ] {
            let function = function(gpu, shape, sk, masked);
            let (source, compiled) = cuda_tests::compile(&function, gpu);
            let resources = compiled.resources;
            let what =
                format!("{gpu} {shape:?} {sk}: {resources:?}, {} shared", source.shared_bytes);
            println!("{what}");
            if let Ok(folder) = std::env::var("DUMP") {
                let name = format!("{folder}/{gpu}-{}-{}-{sk}", shape[1], shape[3]);
                std::fs::write(format!("{name}.cubin"), &compiled.cubin).unwrap();
                std::fs::write(format!("{name}.cu"), &source.text).unwrap();
            }
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
