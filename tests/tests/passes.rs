//! Runs every `ir/<pass>/*.ir`: the graph above `==== expect`, the passes of its first line, and the
//! text that must come out. `UPDATE_EXPECT=1` writes the lower half.
#![allow(clippy::unwrap_used, reason = "a failing test may panic anywhere")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use compiler::{PIPELINE, optimize, passes, pipeline_through, run_passes};
use models::config::{Activation, AutoencoderKl, Stdit, Stdit2, T5};
use models::t5::TextBucket;
use models::vae::FrameBucket;
use models::{Bucket, stdit2, t5, vae};
use ops::{Builder, Class, DType, Graph, Op, TensorType};

const SEPARATOR: &str = "==== expect\n";

fn ir_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("ir")
}

/// Cases below `ir`, sorted: the name of the folder and the file.
fn cases() -> Vec<(String, PathBuf)> {
    let mut cases = Vec::new();
    for folder in sorted(&ir_dir()) {
        let name = folder.file_name().expect("a folder has a name").to_string_lossy().into_owned();
        cases.extend(sorted(&folder).into_iter().map(|file| (name.clone(), file)));
    }
    cases
}

fn sorted(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("ir is a folder of folders");
    let path = |entry: std::io::Result<fs::DirEntry>| entry.expect("ir can be read").path();
    let mut paths: Vec<PathBuf> = entries.map(path).collect();
    paths.sort();
    paths
}

#[test]
fn ir_files_give_what_they_expect() {
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    let mut wrong = Vec::new();
    for (_, path) in cases() {
        let text = fs::read_to_string(&path).unwrap();
        let (input, expected) = text.split_once(SEPARATOR).unwrap_or((&text, ""));
        let header = input.lines().next().unwrap();
        let names = header.strip_prefix("// passes: ").expect("line 1 is `// passes: a, b`");
        let names: Vec<&str> = names.split(", ").collect();
        let graph = ops::parse(input).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let passes = passes(&names).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let found = run_passes(graph, passes, &mut |_| {}).to_string();
        if update {
            fs::write(&path, format!("{}\n{SEPARATOR}{found}", input.trim_end())).unwrap();
        } else if found != expected {
            wrong.push(format!("{}\nexpected:\n{expected}found:\n{found}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "UPDATE_EXPECT=1 accepts these:\n{}", wrong.join("\n"));
}

#[test]
fn every_pass_has_a_folder_of_cases_that_run_it() {
    let cases = cases();
    for pass in PIPELINE {
        let folder = pass.name.replace('-', "_");
        let own: Vec<&PathBuf> =
            cases.iter().filter(|(name, _)| *name == folder).map(|(_, file)| file).collect();
        assert!(!own.is_empty(), "no case in ir/{folder}");
        for file in own {
            let text = fs::read_to_string(file).unwrap();
            let header = text.lines().next().unwrap();
            assert!(header.contains(pass.name), "{} does not run {}", file.display(), pass.name);
        }
    }
    for (folder, file) in &cases {
        let known = PIPELINE.iter().any(|pass| pass.name.replace('-', "_") == *folder);
        assert!(known, "{} is for no pass", file.display());
        let n_lines = fs::read_to_string(file).unwrap().lines().count();
        assert!(n_lines <= 40, "{} has {n_lines} lines: one idea a file", file.display());
    }
}

#[test]
fn an_unknown_pass_is_refused_with_the_known_names() {
    let error = passes(&["canonicalize", "fuse-everything"]).unwrap_err().to_string();
    assert!(error.contains("fuse-everything"), "{error}");
    for pass in PIPELINE {
        assert!(error.contains(pass.name), "{error} lacks {}", pass.name);
    }
}

#[test]
fn the_pipeline_stops_after_a_named_pass() {
    let part = pipeline_through("simplify-algebra").unwrap();
    assert_eq!(part.last().unwrap().name, "simplify-algebra");
    assert!(part.len() < PIPELINE.len());
}

#[test]
fn the_observer_hears_of_each_pass_and_whether_it_changed_the_graph() {
    let text = "graph @g {\n  %0 : f32[2] = input \"x\"\n  %1 : f32[2] = neg %0\n  \
                %2 : f32[2] = neg %1\n  return %2\n}\n";
    let mut changed = Vec::new();
    let mut n_stages = 0;
    run_passes(ops::parse(text).unwrap(), PIPELINE, &mut |stage| {
        n_stages += 1;
        if stage.changed {
            changed.push(stage.pass.name);
        }
    });
    assert_eq!(n_stages, PIPELINE.len());
    assert_eq!(changed, ["simplify-algebra", "eliminate-dead-values"]);
}

#[test]
fn groups_have_at_most_twelve_operands_and_thirty_two_ops() {
    let mut b = Builder::new("wide_and_long");
    let ty = TensorType::new(DType::F32, [4]).unwrap();
    let inputs: Vec<_> = (0..20).map(|i| b.input(&format!("x{i}"), ty.clone())).collect();
    let mut sum = inputs[0];
    for &x in &inputs[1..] {
        sum = b.add(sum, x).unwrap();
    }
    for _ in 0..50 {
        sum = b.sin(sum).unwrap();
    }
    let graph = optimize(b.finish(&[sum]), &mut |_| {});
    let sizes: Vec<(usize, usize)> = graph
        .values()
        .filter_map(|value| match graph.op(value) {
            Some(Op::Fused(fused)) => {
                Some((graph.node(value).args.len(), fused.body().nodes.len()))
            }
            _ => None,
        })
        .map(|(n_operands, n_nodes)| (n_operands, n_nodes - n_operands))
        .collect();
    assert_eq!(sizes.iter().map(|(_, n_ops)| n_ops).sum::<usize>(), 69);
    assert!(sizes.iter().all(|&(n_operands, n_ops)| n_operands <= 12 && n_ops <= 32), "{sizes:?}");
}

/// What computes in `graph` in the part `scope`, in program order: the ops of each group, and ops
/// alone.
fn computing(graph: &Graph, scope: &str) -> Vec<String> {
    let name = |op: &Op| op.def().name();
    graph
        .values()
        .filter(|&value| {
            let inside = graph.node(value).scope.strip_prefix(scope);
            inside.is_some_and(|rest| scope.is_empty() || rest.is_empty() || rest.starts_with('.'))
        })
        .filter_map(|value| graph.op(value).map(|op| (value, op)))
        .filter(|(_, op)| op.def().class() != Class::Movement)
        .map(|(value, op)| {
            let scope = &graph.node(value).scope;
            match op {
                Op::Fused(fused) => {
                    let body = fused.body();
                    let ops: Vec<&str> =
                        body.values().filter_map(|value| body.op(value).map(name)).collect();
                    format!("{scope}: {} of {}", fused.kind(), ops.join(" "))
                }
                op => format!("{scope}: {}", name(op)),
            }
        })
        .collect()
}

fn stdit2_xl(frame_mask: bool) -> Graph {
    let common = Stdit {
        in_channels: 4,
        patch_size: [1, 2, 2],
        hidden_size: 1152,
        depth: 28,
        num_heads: 16,
        mlp_ratio: 4.0,
        pred_sigma: true,
        caption_channels: 4096,
        model_max_length: 200,
    };
    let config = Stdit2 { common, input_sq_size: 512.0, qk_norm: true, qk_norm_legacy: true };
    let bucket = Bucket { frame_mask, ..Bucket::new(2, [16, 30, 40], [240.0, 320.0], 200) };
    stdit2::graph(&config, &bucket).expect("the bucket fits the model")
}

/// The graph as fusion leaves it.
fn grouped(graph: Graph) -> Graph {
    run_passes(graph, pipeline_through("fuse-elementwise").expect("the pass exists"), &mut |_| {})
}

#[test]
fn every_op_of_an_stdit2_block_is_in_its_group() {
    let graph = grouped(stdit2_xl(false));
    // The sums are the rows of the modulation tables, which several groups read.
    let expected = [
        "blocks.1: add",
        "blocks.1: add",
        "blocks.1.attn.qkv: matmul of layer_norm add_scalar mul add matmul add",
        "blocks.1.attn: attention of rms_norm mul rms_norm mul attention",
        "blocks.1.attn.proj: matmul of matmul add mul add",
        "blocks.1.attn_temp.qkv: matmul of layer_norm add_scalar mul add matmul add",
        "blocks.1.attn_temp: attention of rope rms_norm mul rope rms_norm mul attention",
        "blocks.1.attn_temp.proj: matmul of matmul add mul add",
        "blocks.1.cross_attn.q_linear: matmul of matmul add",
        "blocks.1.cross_attn.kv_linear: matmul of matmul add",
        "blocks.1.cross_attn: attention",
        "blocks.1.cross_attn.proj: matmul of matmul add add",
        "blocks.1.mlp.fc1: matmul of layer_norm add_scalar mul add matmul add gelu_tanh",
        "blocks.1.mlp.fc2: matmul of matmul add mul add",
    ];
    assert_eq!(computing(&graph, "blocks.1"), expected);
}

#[test]
fn frame_masks_do_not_break_the_groups_of_stdit2() {
    let graph = grouped(stdit2_xl(true));
    let expected = [
        "blocks.1: add",
        "blocks.1: add",
        "blocks.1: add",
        "blocks.1: add",
        "blocks.1.attn.qkv: matmul of select select layer_norm add_scalar mul add matmul add",
        "blocks.1.attn: attention of rms_norm mul rms_norm mul attention",
        "blocks.1.attn.proj: matmul of select matmul add mul add",
        "blocks.1.attn_temp.qkv: matmul of select select layer_norm add_scalar mul add matmul add",
        "blocks.1.attn_temp: attention of rope rms_norm mul rope rms_norm mul attention",
        "blocks.1.attn_temp.proj: matmul of select matmul add mul add",
        "blocks.1.cross_attn.q_linear: matmul of matmul add",
        "blocks.1.cross_attn.kv_linear: matmul of matmul add",
        "blocks.1.cross_attn: attention",
        "blocks.1.cross_attn.proj: matmul of matmul add add",
        "blocks.1.mlp.fc1: matmul of select select layer_norm add_scalar mul add matmul add gelu_tanh",
        "blocks.1.mlp.fc2: matmul of select matmul add mul add",
    ];
    assert_eq!(computing(&graph, "blocks.1"), expected);
}

#[test]
fn every_op_of_a_t5_block_is_in_its_group() {
    let config = T5 {
        vocab_size: 100,
        d_model: 16,
        d_kv: 4,
        d_ff: 32,
        num_layers: 2,
        num_heads: 4,
        relative_attention_num_buckets: 32,
        relative_attention_max_distance: 128,
        layer_norm_epsilon: 1e-6,
        gated: true,
        activation: Activation::GeluTanh,
    };
    let bucket = TextBucket { dtype: DType::F32, rows: 2, tokens: 7, mask: true };
    let graph = optimize(t5::graph(&config, &bucket).unwrap(), &mut |_| {});
    // Norms that several products read are computed once, before them.
    let expected = [
        "encoder.block.1.layer.0.layer_norm: norm of rms_norm mul",
        "encoder.block.1.layer.0.SelfAttention.q: matmul",
        "encoder.block.1.layer.0.SelfAttention.k: matmul",
        "encoder.block.1.layer.0.SelfAttention.v: matmul",
        "encoder.block.1.layer.0.SelfAttention: attention",
        "encoder.block.1.layer.0.SelfAttention.o: matmul of matmul add",
        "encoder.block.1.layer.1.layer_norm: norm of rms_norm mul",
        "encoder.block.1.layer.1.DenseReluDense.wi_1: matmul",
        "encoder.block.1.layer.1.DenseReluDense.wi_0: matmul of matmul gelu_tanh mul",
        "encoder.block.1.layer.1.DenseReluDense.wo: matmul of matmul add",
    ];
    assert_eq!(computing(&graph, "encoder.block.1"), expected);
}

#[test]
fn every_op_of_a_vae_decoder_is_in_its_group() {
    let config = AutoencoderKl {
        in_channels: 3,
        out_channels: 3,
        latent_channels: 4,
        block_out_channels: vec![8, 16],
        layers_per_block: 1,
        norm_num_groups: 4,
        use_quant_conv: true,
        use_post_quant_conv: true,
        mid_block_add_attention: true,
    };
    let bucket = FrameBucket { dtype: DType::F32, frames: 2, height: 4, width: 6 };
    let graph = optimize(vae::decoder_graph(&config, &bucket).unwrap(), &mut |_| {});
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for line in computing(&graph, "") {
        let (_, group) = line.split_once(": ").unwrap();
        *counts.entry(group.to_string()).or_default() += 1;
    }
    let expected = [
        ("attention", 1),
        ("conv of conv add", 2),
        ("conv of conv add add", 1),
        ("conv of group_norm silu conv add", 8),
        ("conv of group_norm silu conv add add", 5),
        ("conv of reshape broadcast reshape conv add", 1),
        // Before the attention: its result goes to three products.
        ("group_norm", 1),
        ("matmul of matmul add", 3),
        ("matmul of matmul add add", 1),
    ];
    assert_eq!(counts, expected.map(|(group, n)| (group.to_string(), n)).into());
}
