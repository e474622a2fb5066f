//! What a device would not tell: each check finds what it is for, names it, and leaves the right kernel alone.

mod common;

use common::{Arg, Session, fault, kind};
use emulator::{Arrival, FaultKind, Options, Order};

/// A kernel with two pointers, shared memory of 4 KiB, and each thread's index in `%t` and as offsets.
fn kernel(body: &str) -> String {
    format!(
        ".version 8.8\n.target sm_90a\n.address_size 64\n\
         .visible .entry k(.param .u64 px, .param .u64 po)\n{{\n\
         .reg .pred %p<8>; .reg .b16 %h<4>; .reg .b32 %r<32>; .reg .b64 %d<16>;\n\
         .reg .b32 %t, %s, %w; .reg .b64 %x, %o, %off;\n.shared .align 16 .b8 smem[4096];\n\
         mov.u32 %t, %tid.x; mov.u32 %s, smem; shl.b32 %r0, %t, 2; add.u32 %s, %s, %r0;\n\
         shr.u32 %w, %t, 5; mul.wide.u32 %off, %t, 4;\n\
         ld.param.u64 %x, [px]; ld.param.u64 %o, [po];\n\
         {body}\nret;\n}}\n"
    )
}

fn launch_with(
    body: &str,
    threads: u32,
    options: &Options,
) -> Result<emulator::Stats, emulator::Error> {
    let mut s = Session::new(&kernel(body));
    let x = s.upload_u32(&(0..256).collect::<Vec<u32>>());
    let out = s.alloc(1024);
    s.launch("k", ([1, 1, 1], threads, 0), &[x, out], options)
}

fn launch(body: &str, threads: u32) -> Result<emulator::Stats, emulator::Error> {
    launch_with(body, threads, &Options::default())
}

#[test]
fn an_access_beyond_an_allocation_names_the_thread_and_the_line() {
    let body = "add.s64 %x, %x, %off;\nld.global.u32 %r1, [%x+960];";
    assert!(launch(body, 16).is_ok());
    let fault = fault(launch(body, 17));
    assert_eq!((fault.kind, fault.thread, fault.line), (FaultKind::OutOfBounds, [16, 0, 0], 13));
    let text = fault.to_string();
    assert!(text.contains("`ld.global.u32 %r1, [%x+960]`"), "{text}");
    assert!(text.contains("4 bytes at byte 1024 of an allocation of 1024 bytes"), "{text}");
}

#[test]
fn bounds_of_every_space() {
    for body in [
        "st.global.u32 [%x+-4], 1;",
        "st.shared.u32 [%s+4096], 1;",
        "ld.shared.u32 %r1, [0];",
        "ld.global.u32 %r1, [0];",
        "ld.param.u32 %r1, [po+8];",
        ".local .align 4 .b8 mine[16];\nst.local.u32 [mine+16], %t;",
        "mov.u64 %d1, smem; cvta.shared.u64 %d1, %d1;\nst.u32 [%d1+4096], 1;",
        "cvta.to.shared.u64 %d1, %x;",
        "red.global.add.u32 [%x+1024], 1;",
        "cp.async.ca.shared.global [%s], [%x+1024], 4;",
        "cp.async.ca.shared.global [%s+4096], [%x], 4;",
        "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [%s+4096];",
        "wmma.load.c.sync.aligned.row.m16n16k16.global.f32 {%r1,%r2,%r3,%r4,%r5,%r6,%r7,%r8}, [%x], 17;",
    ] {
        assert_eq!(kind(launch(body, 32)), FaultKind::OutOfBounds, "{body}");
    }
}

#[test]
fn alignment_of_every_space() {
    for body in [
        "ld.global.u32 %r1, [%x+2];",
        "ld.global.v2.u32 {%r1, %r2}, [%x+4];",
        "ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%x+8];",
        "st.shared.u16 [%s+1], %h1;",
        "cp.async.cg.shared.global [%s+8], [%x], 16;",
        "cp.async.ca.shared.global [%s], [%x+2], 4;",
        "atom.global.add.u32 %r1, [%x+2], 1;",
    ] {
        assert_eq!(kind(launch(body, 1)), FaultKind::Misaligned, "{body}");
    }
}

#[test]
fn reads_of_what_nothing_wrote() {
    for body in [
        "ld.global.u32 %r1, [%o];",
        "ld.shared.u32 %r1, [%s];",
        // Two of four bytes are written.
        "st.shared.u16 [%s], %h1;\nld.shared.u32 %r1, [%s];",
        "st.global.u16 [%o+2], %h1;\nld.global.u32 %r1, [%o];",
        "red.shared.add.u32 [%s], 1;",
    ] {
        let fault = fault(launch(body, 1));
        assert_eq!(fault.kind, FaultKind::NeverWritten, "{body}");
        let options = Options { checks_never_written: false, ..Options::default() };
        assert!(launch_with(body, 1, &options).is_ok(), "{body}");
    }
    assert!(launch("st.global.u32 [%o], %t;\nld.global.u32 %r1, [%o];", 1).is_ok());
}

#[test]
fn use_after_free() {
    let mut s = Session::new(&kernel("ld.global.u32 %r1, [%x];"));
    let x = s.upload_u32(&[1]);
    let out = s.alloc(4);
    let Arg::Pointer(address) = x else { unreachable!() };
    s.device.free(address).unwrap();
    let again = s.upload_u32(&[1]);
    assert!(matches!(again, Arg::Pointer(new) if new != address));
    let outcome = s.launch("k", ([1, 1, 1], 1, 0), &[x, out], &Options::default());
    assert_eq!(kind(outcome), FaultKind::OutOfBounds);
}

#[test]
fn barriers_that_a_part_of_a_warp_reaches() {
    let body = "setp.lt.u32 %p1, %t, 5;\n@%p1 bar.sync 0;";
    assert_eq!(kind(launch(body, 32)), FaultKind::DivergentBarrier);
    let body = "setp.lt.u32 %p1, %t, 5;\n@%p1 bra $one;\nbar.sync 0;\nbra $two;\n$one:\nbar.sync 0;\n$two:";
    assert_eq!(kind(launch(body, 64)), FaultKind::DivergentBarrier);
}

#[test]
fn barriers_that_some_warps_do_not_reach() {
    // Warp 1 waits at another barrier.
    let body = "setp.eq.u32 %p1, %w, 1;\n@%p1 bra $one;\nbar.sync 0;\nbra $two;\n$one:\nbar.sync 1;\n$two:";
    let fault = fault(launch(body, 96));
    assert_eq!(fault.kind, FaultKind::Deadlock);
    assert!(fault.what.contains("barrier 0 has 2 of all warps"), "{}", fault.what);
    // A count that too few warps can make up.
    assert_eq!(kind(launch("bar.sync 2, 128;", 96)), FaultKind::Deadlock);
    assert!(launch("bar.sync 2, 96;", 96).is_ok());
    // Warps that have exited are not waited for.
    assert!(launch("setp.ge.u32 %p1, %t, 64;\n@%p1 ret;\nbar.sync 0;", 96).is_ok());
}

#[test]
fn barriers_that_reduce() {
    let body = "setp.lt.u32 %p1, %t, 40;\nbar.red.popc.u32 %r1, 0, %p1;\nsetp.eq.u32 %p2, %r1, 40;\n\
                bar.red.and.pred %p3, 0, %p2;\n@!%p3 trap;\nbar.red.or.pred %p4, 0, !%p2;\n@%p4 trap;";
    assert!(launch(body, 96).is_ok());
    assert_eq!(kind(launch(body, 32)), FaultKind::Trap);
}

#[test]
fn collectives_without_all_their_lanes() {
    let shuffle = "shfl.sync.bfly.b32 %r1, %t, 1, 31, 0xffffffff;";
    assert!(launch(shuffle, 32).is_ok());
    let guarded = format!("setp.lt.u32 %p1, %t, 7;\n@%p1 {shuffle}");
    let fault = fault(launch(&guarded, 32));
    assert_eq!((fault.kind, fault.thread), (FaultKind::InactiveLane, [7, 0, 0]));
    for body in [
        "setp.lt.u32 %p1, %t, 7;\n@%p1 vote.sync.ballot.b32 %r1, %p1, -1;",
        "setp.lt.u32 %p1, %t, 7;\n@%p1 redux.sync.add.u32 %r1, %t, -1;",
        "setp.lt.u32 %p1, %t, 7;\n@%p1 bar.warp.sync -1;",
        // The lane that executes it is not in its mask.
        "shfl.sync.bfly.b32 %r1, %t, 1, 31, 0xfffffffe;",
        // Half a warp exists; lane 15 reads lane 16.
    ] {
        assert_eq!(kind(launch(body, 32)), FaultKind::InactiveLane, "{body}");
    }
    assert_eq!(kind(launch("shfl.sync.down.b32 %r1, %t, 1, 31, -1;", 16)), FaultKind::InactiveLane);
    assert!(
        launch("setp.lt.u32 %p1, %t, 8;\n@%p1 shfl.sync.bfly.b32 %r1, %t, 1, 31, 0xff;", 32)
            .is_ok()
    );
}

/// The other warp's element is read; `between` stands between write and read.
fn exchange(between: &str) -> String {
    format!(
        "st.shared.u32 [%s], %t;\n{between}\nxor.b32 %r1, %t, 32;\nshl.b32 %r1, %r1, 2;\n\
         mov.u32 %r2, smem;\nadd.u32 %r1, %r1, %r2;\nld.shared.u32 %r3, [%r1];\n\
         add.s64 %o, %o, %off;\nst.global.u32 [%o], %r3;"
    )
}

#[test]
fn shared_memory_races_in_every_order() {
    for order in [Order::Forward, Order::Reverse, Order::Random(3)] {
        let options = Options { order, ..Options::default() };
        assert!(launch_with(&exchange("bar.sync 0;"), 64, &options).is_ok());
        let found = kind(launch_with(&exchange(""), 64, &options));
        // In this order the read may come before anything is written.
        assert!(matches!(found, FaultKind::Race | FaultKind::NeverWritten), "{order:?}: {found:?}");
        // A barrier of the warp alone does not order warps.
        let found = kind(launch_with(&exchange("bar.warp.sync -1;"), 64, &options));
        assert!(matches!(found, FaultKind::Race | FaultKind::NeverWritten), "{order:?}: {found:?}");
    }
}

#[test]
fn a_write_after_a_read_needs_a_barrier_too() {
    let body =
        |between: &str| format!("{}\n{between}\nst.shared.u32 [%s], 7;", exchange("bar.sync 0;"));
    assert!(launch(&body("bar.sync 0;"), 64).is_ok());
    let fault = fault(launch(&body(""), 64));
    assert_eq!(fault.kind, FaultKind::Race);
    assert!(fault.what.contains("which warp 0 reads") || fault.what.contains("warp 1"), "{fault}");
    let options = Options { checks_shared_races: false, ..Options::default() };
    assert!(launch_with(&body(""), 64, &options).is_ok());
}

#[test]
fn a_barrier_of_two_warps_does_not_order_a_third() {
    // Warps 0 and 1 meet at barrier 1; warp 2 reads what warp 0 wrote, after a barrier with warp 1 or without.
    let body = |with_one: &str| {
        format!(
            "mov.u32 %r4, smem;\nsetp.eq.u32 %p1, %w, 2;\n@%p1 bra $third;\n\
             setp.eq.u32 %p2, %t, 0;\n@%p2 st.shared.u32 [%r4], 1;\nbar.sync 1, 64;\n\
             setp.eq.u32 %p3, %w, 0;\n@%p3 bra $end;\n{with_one}\nbra $end;\n$third:\n{with_one}\n\
             ld.shared.u32 %r5, [%r4];\n$end:"
        )
    };
    assert!(launch(&body("bar.sync 2, 64;"), 96).is_ok());
    assert_eq!(kind(launch(&body(""), 96)), FaultKind::Race);
}

#[test]
fn atomics_do_not_race_with_each_other() {
    let body = |after: &str| {
        format!(
            "mov.u32 %r4, smem;\nsetp.eq.u32 %p1, %t, 0;\n@%p1 st.shared.u32 [%r4], 0;\nbar.sync 0;\n\
             atom.shared.add.u32 %r5, [%r4], %t;\n{after}\nld.shared.u32 %r6, [%r4];\n\
             st.global.u32 [%x], 1;"
        )
    };
    assert!(launch(&body("bar.sync 0;"), 96).is_ok());
    assert_eq!(kind(launch(&body(""), 96)), FaultKind::Race);
    // The sum of what threads add is there after the barrier.
    let sum = "bar.sync 0;\nld.shared.u32 %r7, [%r4];\nsetp.ne.u32 %p2, %r7, 4560;\n@%p2 trap;";
    assert!(launch(&body(sum), 96).is_ok());
}

#[test]
fn lanes_that_store_different_values_to_one_place() {
    for (body, is_wrong) in [
        ("st.global.u32 [%o], %t;", true),
        ("st.global.u32 [%o], 5;", false),
        ("mov.u32 %r1, smem;\nst.shared.u32 [%r1], %w;", false),
        (
            "and.b32 %r1, %t, 15;\nshl.b32 %r1, %r1, 2;\nmov.u32 %r2, smem;\nadd.u32 %r1, %r1, %r2;\nst.shared.u32 [%r1], %t;",
            true,
        ),
    ] {
        let outcome = launch(body, 32);
        assert_eq!(outcome.is_err(), is_wrong, "{body}");
        if is_wrong {
            assert_eq!(kind(outcome), FaultKind::Race, "{body}");
        }
    }
}

/// Copies of 16 bytes a lane, with what stands between the copy and the read.
fn copied(between: &str) -> String {
    format!(
        "mul.wide.u32 %d1, %t, 16;\nadd.s64 %d1, %x, %d1;\nmov.u32 %r1, smem;\nshl.b32 %r2, %t, 4;\n\
         add.u32 %r1, %r1, %r2;\ncp.async.cg.shared.global [%r1], [%d1], 16;\n{between}\n\
         xor.b32 %r2, %r2, 512;\nmov.u32 %r3, smem;\nadd.u32 %r3, %r3, %r2;\n\
         ld.shared.u32 %r4, [%r3];\nshr.u32 %r2, %r2, 2;\nsetp.ne.u32 %p1, %r4, %r2;\n@%p1 trap;"
    )
}

#[test]
fn copies_need_a_wait_and_a_barrier() {
    for arrival in [Arrival::Late, Arrival::Early] {
        for order in [Order::Forward, Order::Reverse, Order::Random(5)] {
            let options = Options { arrival, order, ..Options::default() };
            let run = |between: &str| launch_with(&copied(between), 64, &options);
            assert!(run("cp.async.commit_group;\ncp.async.wait_group 0;\nbar.sync 0;").is_ok());
            assert!(run("cp.async.wait_all;\nbar.sync 0;").is_ok());
            // Without a wait, with one that leaves the group open, or before the group is committed.
            for between in [
                "cp.async.commit_group;\nbar.sync 0;",
                "cp.async.commit_group;\ncp.async.wait_group 1;\nbar.sync 0;",
                "cp.async.wait_group 0;\nbar.sync 0;",
            ] {
                assert_eq!(kind(run(between)), FaultKind::PendingCopy, "{between}");
            }
            let found = kind(run("cp.async.wait_all;"));
            let is_expected =
                matches!(found, FaultKind::Race | FaultKind::PendingCopy | FaultKind::NeverWritten);
            assert!(is_expected, "{found:?}");
        }
    }
}

#[test]
fn a_copy_over_what_is_still_read_is_a_race() {
    let again = "bar.sync 0;";
    let body = |between: &str| {
        format!(
            "{}\n{between}\ncp.async.cg.shared.global [%r1], [%d1], 16;",
            copied("cp.async.wait_all;\nbar.sync 0;")
        )
    };
    assert!(launch(&body(again), 64).is_ok());
    // Depending on who comes first, it is the copy or the read that is wrong.
    let found: Vec<FaultKind> = (0..64)
        .map(|seed| Options { order: Order::Random(seed), ..Options::default() })
        .map(|options| kind(launch_with(&body(""), 64, &options)))
        .collect();
    assert!(found.contains(&FaultKind::Race) && found.contains(&FaultKind::PendingCopy));
    assert!(found.iter().all(|kind| matches!(kind, FaultKind::Race | FaultKind::PendingCopy)));
}

#[test]
fn short_copies_are_filled_with_zeros() {
    let body = "setp.ne.u32 %p1, %t, 0;\n@%p1 ret;\nmov.u32 %r1, 4;\n\
                cp.async.ca.shared.global [%s], [%x+4], 8, %r1;\nsetp.eq.u32 %p2, %t, 0;\n\
                cp.async.ca.shared.global [%s+8], [0], 4, %p2;\n\
                cp.async.wait_all;\nld.shared.v2.u32 {%r2, %r3}, [%s];\nld.shared.u32 %r4, [%s+8];\n\
                st.global.u32 [%o], %r2;\nst.global.u32 [%o+4], %r3;\nst.global.u32 [%o+8], %r4;";
    let mut s = Session::new(&kernel(body));
    let x = s.upload_u32(&[10, 20, 30]);
    let out = s.alloc(12);
    s.launch("k", ([1, 1, 1], 32, 0), &[x, out], &Options::default()).unwrap();
    assert_eq!(s.u32s(out, 3), [20, 0, 0]);
}

/// Warp 0 fills shared memory and arrives; warp 1 waits for the mbarrier and reads.
fn piped(init: &str, wait: &str) -> String {
    format!(
        "mov.u32 %r1, smem;\nadd.u32 %r2, %r1, 2048;\nsetp.eq.u32 %p1, %t, 0;\n\
         @%p1 mbarrier.init.shared::cta.b64 [%r2], 32;\n{init}\nsetp.eq.u32 %p2, %w, 1;\n\
         @%p2 bra $reader;\nst.shared.u32 [%s], %t;\n\
         mbarrier.arrive.shared::cta.b64 %d1, [%r2];\nbra $end;\n$reader:\n{wait}\n\
         ld.shared.u32 %r3, [%s+-128];\n$end:"
    )
}

#[test]
fn mbarriers_order_warps() {
    let wait =
        "$again:\nmbarrier.try_wait.parity.shared::cta.b64 %p3, [%r2], 0;\n@!%p3 bra $again;";
    for order in [Order::Forward, Order::Reverse, Order::Random(9)] {
        let options = Options { order, ..Options::default() };
        launch_with(&piped("bar.sync 0;", wait), 64, &options).unwrap();
        let found = kind(launch_with(&piped("bar.sync 0;", ""), 64, &options));
        assert!(matches!(found, FaultKind::Race | FaultKind::NeverWritten), "{found:?}");
    }
    // Without a barrier after the initialization another warp may come too early.
    let options = Options { order: Order::Forward, ..Options::default() };
    assert_eq!(kind(launch_with(&piped("", wait), 64, &options)), FaultKind::Race);
    assert_eq!(kind(launch("mbarrier.arrive.shared.b64 %d1, [%s];", 1)), FaultKind::NeverWritten);
}

#[test]
fn bulk_copies_complete_on_an_mbarrier() {
    let body = |wait: &str| {
        format!(
            "mov.u32 %r1, smem;\nadd.u32 %r2, %r1, 2048;\nsetp.eq.u32 %p1, %t, 0;\n\
             @%p1 mbarrier.init.shared::cta.b64 [%r2], 1;\nbar.sync 0;\n\
             @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], 256;\n\
             @%p1 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%x], 256, [%r2];\n\
             {wait}\nld.shared.u32 %r3, [%s];\nsetp.ne.u32 %p4, %r3, %t;\n@%p4 trap;"
        )
    };
    let wait =
        "$again:\nmbarrier.try_wait.parity.shared::cta.b64 %p3, [%r2], 0;\n@!%p3 bra $again;";
    for arrival in [Arrival::Late, Arrival::Early] {
        let options = Options { arrival, ..Options::default() };
        launch_with(&body(wait), 64, &options).unwrap();
    }
    assert_eq!(kind(launch(&body(""), 64)), FaultKind::PendingCopy);
}

#[test]
fn races_between_blocks_are_found_where_asked_for() {
    let body = "mov.u32 %r1, %ctaid.x;\nadd.s64 %o, %o, %off;\nst.global.u32 [%o], %t;";
    let run = |body: &str, checks_block_races: bool| {
        let mut s = Session::new(&kernel(body));
        let x = s.upload_u32(&[0; 64]);
        let out = s.alloc(1024);
        let options = Options { checks_block_races, ..Options::default() };
        s.launch("k", ([3, 1, 1], 32, 0), &[x, out], &options)
    };
    assert!(run(body, false).is_ok());
    let fault = fault(run(body, true));
    assert_eq!((fault.kind, fault.block), (FaultKind::Race, [1, 0, 0]));
    let apart = "mov.u32 %r1, %ctaid.x;\nmad.lo.u32 %r1, %r1, 32, %t;\nmul.wide.u32 %d1, %r1, 4;\n\
                 add.s64 %o, %o, %d1;\nst.global.u32 [%o], %t;\nld.global.u32 %r2, [%x];\n\
                 red.global.add.u32 [%x+4], 1;";
    assert!(run(apart, true).is_ok());
    let read_and_changed = "red.global.add.u32 [%x], 1;\nld.global.u32 %r2, [%x];";
    assert_eq!(kind(run(read_and_changed, true)), FaultKind::Race);
}

#[test]
fn endless_loops_end() {
    let options = Options { max_steps: 10_000, ..Options::default() };
    let found = kind(launch_with("$again:\nadd.u32 %t, %t, 1;\nbra $again;", 64, &options));
    assert_eq!(found, FaultKind::StepLimit);
    // A spinning warp does not keep others from going on.
    let body = "setp.eq.u32 %p1, %w, 0;\n@%p1 bra $spin;\nst.global.u32 [%x], 1000;\nbra $end;\n\
                $spin:\nld.volatile.global.u32 %r1, [%x];\nsetp.ne.u32 %p2, %r1, 1000;\n@%p2 bra $spin;\n$end:";
    assert!(launch(body, 64).is_ok());
}

#[test]
fn traps_and_wrong_tables() {
    assert_eq!(kind(launch("setp.eq.u32 %p1, %t, 9;\n@%p1 trap;", 32)), FaultKind::Trap);
    let body = "ts: .branchtargets $a, $a;\nbrx.idx %t, ts;\n$a:";
    assert!(launch(body, 2).is_ok());
    assert_eq!(fault(launch(body, 3)).thread, [2, 0, 0]);
    assert_eq!(kind(launch(body, 3)), FaultKind::BadOperand);
}

#[test]
fn launches_that_a_driver_refuses() {
    let s = Session::new(&kernel(""));
    let args = [Arg::Pointer(0), Arg::Pointer(0)];
    for (shape, named) in [
        (([1, 1, 1], 1025, 0), "block"),
        (([0, 1, 1], 32, 0), "grid"),
        (([1, 70_000, 1], 32, 0), "grid"),
        (([1, 1, 1], 32, 230_000), "shared memory"),
    ] {
        let error = s.launch("k", shape, &args, &Options::default()).unwrap_err().to_string();
        assert!(error.starts_with("launch of k: ") && error.contains(named), "{error}");
    }
    assert!(s.launch("other", ([1, 1, 1], 32, 0), &args, &Options::default()).is_err());
}

#[test]
fn the_first_failing_block_is_reported_for_any_number_of_threads() {
    let body = "mov.u32 %r1, %ctaid.x;\nsetp.ge.u32 %p1, %r1, 37;\n@%p1 trap;";
    for threads in [1, 2, 8] {
        let mut s = Session::new(&kernel(body));
        let x = s.upload_u32(&[0]);
        let options = Options { threads: threads.try_into().unwrap(), ..Options::default() };
        let fault = fault(s.launch("k", ([200, 1, 1], 32, 0), &[x, x], &options));
        assert_eq!(fault.block, [37, 0, 0]);
    }
}
