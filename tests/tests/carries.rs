//! What goes from run to run: memory of its own, new values written over old ones, steps that run together, and who
//! notices if any of it is wrong.
#![allow(clippy::unwrap_used, reason = "a failing test may panic anywhere")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use compiler::{Carry, Memory, Plan, check_plan, compile_training_carrying};
use kernels::{Isa, Pool};
use ops::{Builder, DType, Graph, Role, Tensor, TensorType, ValueId};
use runtime::{Control, Error, InputStore, Session, WeightStore};
use tests::compiled::{Table, target};
use tests::random_graph::{random_graph, random_values};

const N_GRAPHS: u64 = 60;

type Given = BTreeMap<String, Tensor>;

fn carry(input: &str, output: usize) -> Carry {
    Carry { input: input.into(), output: Some(output) }
}

fn plan(graph: &Graph, threads: usize, carries: &[Carry]) -> Plan {
    let target = target(Isa::detect(), threads);
    let plan = compile_training_carrying(graph.clone(), &target, None, carries);
    let plan = plan.unwrap_or_else(|error| panic!("{error}\n{graph}")).plan;
    let problems = check_plan(&plan);
    assert!(problems.is_empty(), "{problems:?}\n{plan}");
    plan
}

fn session(plan: Plan, given: &Given) -> Session {
    let pool = Arc::new(Pool::new(plan.target.threads).unwrap());
    Session::new(Arc::new(plan), &WeightStore::new(Table(given.clone())), pool).unwrap()
}

fn inputs(plan: &Plan, given: &Given) -> Vec<(String, Vec<u8>)> {
    let named = plan.inputs.iter().map(|port| port.name.to_string());
    named.map(|name| (name.clone(), given[&name].to_bytes())).collect()
}

/// The outputs of two runs, of which the second starts from what the first ended with; nothing is carried by the plan.
fn by_hand(graph: &Graph, given: &Given, carries: &[Carry]) -> [Vec<Vec<u8>>; 2] {
    let plan = plan(graph, 1, &[]);
    let mut inputs = inputs(&plan, given);
    let mut session = session(plan, given);
    [(); 2].map(|()| {
        let all: Vec<(&str, &[u8])> =
            inputs.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
        session.run(&all).unwrap();
        let outputs: Vec<Vec<u8>> =
            (0..graph.outputs.len()).map(|index| session.output(index).to_vec()).collect();
        for Carry { input, output } in carries {
            if let Some(output) = output {
                let (_, value) = inputs.iter_mut().find(|(name, _)| **name == **input).unwrap();
                value.clone_from(&outputs[*output]);
            }
        }
        outputs
    })
}

/// The same by a plan that carries.
fn carried(plan: Plan, given: &Given) -> [Vec<Vec<u8>>; 2] {
    let mut store = InputStore::new();
    for (name, bytes) in inputs(&plan, given) {
        store.write(&name, &bytes).unwrap();
    }
    let in_place: BTreeMap<usize, Arc<str>> = plan
        .carries
        .iter()
        .filter(|carry| plan.is_in_place(carry))
        .filter_map(|carry| Some((carry.output?, Arc::clone(&carry.input))))
        .collect();
    let n_outputs = plan.outputs.len();
    let mut session = session(plan, given);
    [(); 2].map(|()| {
        session.run_on(&mut store, &[], Control::default()).unwrap();
        let output = |index: usize| match in_place.get(&index) {
            Some(input) => store.get(input).unwrap().to_vec(),
            None => session.output(index).to_vec(),
        };
        (0..n_outputs).map(output).collect()
    })
}

/// A random graph, and for each of its float inputs a new value of it as one more output.
fn random_step(seed: u64) -> (Graph, Vec<Carry>) {
    let graph = random_graph(seed);
    let mut outputs = graph.outputs.clone();
    let is_float = |value: &ValueId| graph.ty(*value).dtype().is_float();
    let inputs: Vec<(ValueId, String)> =
        graph.inputs().map(|(value, name)| (value, name.to_string())).collect();
    let inputs: Vec<(ValueId, String)> =
        inputs.into_iter().filter(|(value, _)| is_float(value)).collect();
    let mut b = Builder::extend(graph);
    let mut carries = vec![];
    let mut last: Option<ValueId> = None;
    for (value, name) in inputs {
        let half = b.mul_scalar(value, 0.5).unwrap();
        // Neighbors of one shape depend on each other.
        let new = match last.filter(|last| b.ty(*last) == b.ty(half)) {
            Some(last) => b.add(half, last).unwrap(),
            None => b.add_scalar(half, 0.25).unwrap(),
        };
        last = Some(new);
        carries.push(carry(&name, outputs.len()));
        outputs.push(new);
    }
    (b.finish(&outputs), carries)
}

#[test]
fn state_is_carried_as_by_hand_bit_for_bit() {
    let (mut n_in_place, mut n_joined) = (0, 0);
    for seed in 0..N_GRAPHS {
        let (graph, carries) = random_step(seed);
        let given = random_values(&graph, seed);
        let expected = by_hand(&graph, &given, &carries);
        for threads in [1, 3] {
            let plan = plan(&graph, threads, &carries);
            n_in_place += plan.carries.iter().filter(|carry| plan.is_in_place(carry)).count();
            n_joined += plan.steps.iter().filter(|step| step.joins).count();
            let text = format!("{plan:#}");
            let parsed = compiler::parse_plan(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
            assert_eq!(format!("{parsed:#}"), text, "seed {seed}");
            assert!(carried(plan, &given) == expected, "seed {seed}, {threads} threads\n{graph}");
        }
    }
    assert!(n_in_place > N_GRAPHS as usize, "only {n_in_place} are written in place");
    assert!(n_joined > 0, "no steps run together");
}

/// The update of a weight by `AdamW`, with an average; `g` is made by a step, as a gradient is.
fn update(shape: &[usize]) -> (Graph, Vec<Carry>) {
    let mut b = Builder::new("update");
    let ty = TensorType::new(DType::F32, shape).unwrap();
    let [x, w, m, v, e] = ["x", "w", "m", "v", "e"].map(|name| b.input(name, ty.clone()));
    let g = b.softmax(x, shape.len() - 1).unwrap();
    let norm = b.reduce_sum(g, &[0, 1]).unwrap();
    let g = b.mul(g, norm).unwrap();
    let mix = |b: &mut Builder, old: ValueId, new: ValueId, share: f64| {
        let (old, new) =
            (b.mul_scalar(old, share).unwrap(), b.mul_scalar(new, 1.0 - share).unwrap());
        b.add(old, new).unwrap()
    };
    let m = mix(&mut b, m, g, 0.9);
    let square = b.square(g).unwrap();
    let v = mix(&mut b, v, square, 0.99);
    let root = b.sqrt(v).unwrap();
    let root = b.add_scalar(root, 1e-3).unwrap();
    let change = b.div(m, root).unwrap();
    let w = b.sub(w, change).unwrap();
    let e = mix(&mut b, e, w, 0.75);
    let carries =
        [("w", 0), ("m", 1), ("v", 2), ("e", 3)].map(|(name, output)| carry(name, output));
    (b.finish(&[w, m, v, e]), carries.to_vec())
}

fn positive(graph: &Graph) -> Given {
    let mut given = Given::new();
    for node in &graph.nodes {
        let Role::Input(name) = &node.role else { continue };
        let seed = f64::from(name.as_bytes()[0]);
        let wave = |i: usize| 1.5 + (seed + 0.37 * i as f64).sin();
        let values = (0..node.ty.count()).map(wave).collect();
        given.insert(name.to_string(), Tensor::floats(node.ty.clone(), values).rounded());
    }
    given
}

#[test]
fn an_update_is_one_loop_over_memory_that_stays() {
    // Several turns of the loop, the last of them short.
    let (graph, carries) = update(&[517, 101]);
    let plan = plan(&graph, 2, &carries);
    assert!(plan.carries.iter().all(|carry| plan.is_in_place(carry)), "{plan}");
    let joined: Vec<usize> =
        (0..plan.steps.len()).filter(|&step| plan.joined_end(step) > step + 1).collect();
    let first = *joined.first().expect("steps run together");
    assert_eq!(plan.joined_end(first), plan.steps.len(), "{plan}");
    let results = plan.steps[first..].iter().map(|step| plan.buffers[step.result.index()].memory);
    assert!(results.filter(|&memory| memory == Memory::Carried).count() == 4, "{plan}");
    // Beside them there is the gradient, and what it is made of; scratch is less than one of them.
    let bytes = plan.graph.ty(plan.steps[first].value).bytes();
    assert!(plan.arena_bytes < 3 * bytes, "{} bytes", plan.arena_bytes);
    assert_eq!(plan.carried_bytes(), 4 * bytes.next_multiple_of(64));
    let text = plan.to_string();
    for line in ["carry \"0\" to \"w\" in place", "with step", "carried live 0.."] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
    let given = positive(&graph);
    assert!(carried(plan, &given) == by_hand(&graph, &given, &carries));
}

#[test]
fn what_cannot_be_in_place_is_copied() {
    let mut b = Builder::new("exchange");
    let ty = TensorType::new(DType::F32, [5, 7]).unwrap();
    let [x, y, z] = ["x", "y", "z"].map(|name| b.input(name, ty.clone()));
    let (new_x, new_y) = (b.neg(y).unwrap(), b.add_scalar(x, 1.0).unwrap());
    // The new `z` is read beside the old one.
    let new_z = b.exp(z).unwrap();
    let both = b.matmul(new_z, z, false, true).unwrap();
    let graph = b.finish(&[new_x, new_y, new_z, both]);
    let carries = [carry("x", 0), carry("y", 1), carry("z", 2)];
    let plan = plan(&graph, 2, &carries);
    let in_place = plan.carries.iter().filter(|carry| plan.is_in_place(carry)).count();
    assert!(in_place < 2, "{plan}");
    assert!(plan.to_string().contains("to \"z\" by copy"), "{plan}");
    let given = positive(&graph);
    assert!(carried(plan, &given) == by_hand(&graph, &given, &carries));
}

#[test]
fn the_checker_rejects_what_is_carried_wrongly() {
    let (graph, carries) = update(&[129, 101]);
    let good = plan(&graph, 2, &carries);
    let first = (0..good.steps.len()).find(|&step| good.joined_end(step) > step + 1).unwrap();
    type Damage<'a> = (&'a str, Box<dyn Fn(&mut Plan) + 'a>);
    let w = good.inputs.iter().find(|port| *port.name == *"w").unwrap().buffer;
    let x = good.inputs.iter().find(|port| *port.name == *"x").unwrap().buffer;
    let is_scratch = |step: usize| good.steps[step].scratch.unwrap();
    let damages: Vec<Damage<'_>> = vec![
        ("another step runs along", Box::new(|plan| plan.steps[first].joins = true)),
        ("state is in the arena", Box::new(|plan| plan.buffers[w.index()].memory = Memory::Arena)),
        ("an input is state", Box::new(|plan| plan.buffers[x.index()].memory = Memory::Carried)),
        (
            "outputs are exchanged",
            Box::new(|plan| (plan.carries[0].output, plan.carries[1].output) = (Some(1), Some(0))),
        ),
        ("nothing replaces it", Box::new(|plan| plan.carries[0].output = None)),
        ("there is no such input", Box::new(|plan| plan.carries[0].input = "q".into())),
        (
            "scratch is shared",
            Box::new(|plan| plan.steps[first + 1].scratch = Some(is_scratch(first))),
        ),
        (
            "a later step of the loop reads elsewhere",
            Box::new(|plan| {
                let step = &mut plan.steps[first + 1];
                for operand in &mut step.operands {
                    operand.layout = operand.layout.permuted(&[1, 0]);
                }
            }),
        ),
    ];
    for (what, damage) in damages {
        let mut bad = good.clone();
        damage(&mut bad);
        assert!(!check_plan(&bad).is_empty(), "{what}\n{bad}");
    }
}

#[test]
fn carries_that_cannot_be_are_refused() {
    let (graph, carries) = update(&[4, 3]);
    let target = target(Isa::detect(), 1);
    let refused = |wrong: Carry| {
        let mut carries = carries.clone();
        carries.push(wrong);
        let plan = compile_training_carrying(graph.clone(), &target, None, &carries);
        plan.expect_err("it is refused").to_string()
    };
    assert!(refused(carry("q", 0)).contains("`q` cannot be carried: the graph has no such input"));
    assert!(refused(carry("w", 0)).contains("`w` cannot be carried"));
    assert!(refused(carry("x", 4)).contains("there are 4 outputs"));
    assert!(refused(carry("x", 0)).contains("output 0 replaces another input too"));
    let mut b = Builder::new("types");
    let x = b.input("x", TensorType::new(DType::F32, [4]).unwrap());
    let half = b.cast(x, DType::Bf16).unwrap();
    let error = compile_training_carrying(b.finish(&[half]), &target, None, &[carry("x", 0)]);
    assert!(error.unwrap_err().to_string().contains("it is f32[4], but output 0"));
}

#[test]
fn a_store_that_lacks_something_is_refused_and_stays() {
    let (graph, carries) = update(&[129, 101]);
    let given = positive(&graph);
    let plan = plan(&graph, 2, &carries);
    let all = inputs(&plan, &given);
    let mut session = session(plan, &given);
    let borrowed: Vec<(&str, &[u8])> =
        all.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
    let error = session.write_inputs(&borrowed).unwrap_err().to_string();
    assert!(error.contains("stays from run to run"), "{error}");

    let mut store = InputStore::new();
    let mut run =
        |store: &mut InputStore, control: Control<'_>| session.run_on(store, &[], control);
    for (name, bytes) in &all {
        let error = run(&mut store, Control::default()).unwrap_err();
        assert!(matches!(error, Error::Input { .. }), "{error}");
        store.write(name, bytes).unwrap();
    }
    let before = store.clone();
    let interrupt = AtomicBool::new(true);
    let control = Control { interrupt: Some(&interrupt), on_step: None };
    assert!(matches!(run(&mut store, control), Err(Error::Interrupted)));
    assert!(store.iter().eq(before.iter()), "an interrupted run changed the store");
    run(&mut store, Control::default()).unwrap();
    assert!(!store.iter().eq(before.iter()));
    let mut short = before.clone();
    short.write("m", &[0; 8]).unwrap();
    let error = run(&mut short, Control::default()).unwrap_err().to_string();
    assert!(error.contains("`m`: 8 bytes, expected 52116"), "{error}");
}
