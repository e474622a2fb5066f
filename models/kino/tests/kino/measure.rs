//! `kino bench` without peers, and `kino synth`.

use crate::program::Program;
use serde_json::Value;

fn document(json: &str) -> Value {
    serde_json::from_str(json).unwrap()
}

#[test]
fn bench_lists_its_rows() {
    let program = Program::new();
    let listed = program.run(&["bench", "--list"]).done().stdout;
    assert!(listed.contains("attention-time"));
    let rows = document(&program.run(&["bench", "--list", "--json"]).done().stdout);
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), listed.lines().count());
    let slow: Vec<&Value> = rows.iter().filter(|row| row["only_full"] == true).collect();
    assert!(slow.iter().any(|row| row["row"] == "stdit2-step-240p"), "{slow:?}");
}

#[test]
fn bench_measures_a_product_without_peers() {
    let program = Program::new();
    let args = ["bench", "--only", "linear-proj", "--turns", "2", "--threads", "2", "--json"];
    let document = document(&program.run(&args).done().stdout);
    let results = document["results"].as_array().unwrap();
    let types: Vec<&str> = results.iter().map(|row| row["dtype"].as_str().unwrap()).collect();
    assert_eq!(types, ["f32", "bf16"]);
    for row in results {
        assert_eq!(
            (&row["row"], &row["flops"]),
            (&"linear-proj".into(), &10_871_635_968u64.into())
        );
        let [side] = row["sides"].as_array().unwrap().as_slice() else { panic!("{row}") };
        assert_eq!(side["side"], "Kinograph");
        assert_eq!(side["seconds"]["all"].as_array().unwrap().len(), 2);
        assert!(side["seconds"]["median"].as_f64().unwrap() > 0.0, "{side}");
        assert!(side["peak_gflops"].as_f64().unwrap() > 0.0, "{side}");
        // Nothing to compare with.
        assert!(side["error"].is_null() && side["ratio"].is_null(), "{side}");
        assert_eq!(row["kernels"][0]["kernel"], "matmul", "{row}");
    }
    assert_eq!(program.files(), [""; 0]);
}

#[test]
fn bench_refuses_what_it_cannot_measure() {
    let program = Program::new();
    program.run(&["bench", "--only", "stdit-block"]).failed(2, "did you mean stdit2-block?");
    let args = ["bench", "--only", "linear-proj", "--with-peers", "--peers", "serve.py"];
    program.run(&args).failed(2, "--peers serve.py: no such file");
    std::fs::write(program.path("serve.py"), "").unwrap();
    program.run(&args).failed(2, "benches/peers/install");
    let ran = program.run(&["bench", "--dtype", "f64"]);
    assert!(ran.code == Some(2) && ran.stderr.contains("expected f32 or bf16"), "{ran:?}");
}

#[test]
fn synth_makes_what_inspect_recognizes() {
    let program = Program::new();
    let made = program.run(&["synth", "sd-vae", "--dtype", "bf16", "--out", "vae"]).done();
    assert!(made.stdout.contains("159.6 MiB"), "{made:?}");
    let found = document(&program.run(&["inspect", "vae", "--json"]).done().stdout);
    assert_eq!(found["fit"]["fits"], true, "{found}");
    assert_eq!(found["identity"]["kind"], "AutoencoderKl");
    assert_eq!(found["identity"]["n_parameters"], 83_653_863);
    assert_eq!(program.files(), ["vae"]);
    // What is there is not replaced.
    program.run(&["synth", "sd-vae", "--out", "vae"]).failed(1, "vae");
    program.run(&["synth", "sd-vea", "--out", "b"]).failed(2, "did you mean sd-vae?");
    program.run(&["synth", "tiny-flare-1.1", "--out", "b"]).failed(2, "is embedded");
}
