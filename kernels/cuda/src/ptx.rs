//! PTX instructions that `CubeCL` has no form for: tensor cores, matrices from shared memory,
//! asynchronous copies, exchange within a warp.
//!
//! Shared memory is addressed by 32-bit numbers here, global memory by 64-bit ones, both in bytes;
//! `offset` is part of the instruction. What touches memory is a barrier to the compiler, so that no
//! access moves across.

use cubecl::prelude::*;
use cubecl_cpp::cuda::ptx::generic_to_shared;

/// Two 16-bit or one 32-bit register for each of four.
pub(crate) type Words4 = Vector<u32, Const<4>>;
/// Sums of a tile of 16x8: two of row `lane / 4`, two of the row 8 below, at `2 (lane % 4)`.
pub(crate) type Sums = Vector<f32, Const<4>>;

/// The number itself, where a mutable variable would be passed as its address.
#[cube]
fn read<T: CubePrimitive>(x: T) -> T {
    intrinsic!(|scope| x.read_value(scope).into())
}

/// Where `memory` starts in the block's shared memory.
#[cube]
pub(crate) fn shared_address(memory: &Shared<[u32]>) -> u32 {
    generic_to_shared::<u32>(memory.as_ptr())
}

/// Where `memory` starts.
#[cube]
pub(crate) fn global_address<T: CubePrimitive>(memory: &[T]) -> u64 {
    let pointer = memory.as_ptr();
    let address: u64;
    gpu_asm!("mov.u64 {to}, {from};", to = out(_) address, from = in(_) pointer, options(nomem));
    address
}

/// The 4 bytes at `address`, which nothing writes during the launch.
#[cube]
pub(crate) fn load_global_word(address: u64, #[comptime] offset: u32) -> u32 {
    let word: u32;
    gpu_asm!(
        "ld.global.nc.b32 {word}, [{address}+{offset}];",
        word = out(_) word, address = in(_) read::<u64>(address),
    );
    word
}

/// Writes the low 2 bytes of a word.
#[cube]
pub(crate) fn store_global_half(address: u64, #[comptime] offset: u32, word: u32) {
    gpu_asm!(
        "{{ .reg .b16 low; cvt.u16.u32 low, {word}; st.global.b16 [{address}+{offset}], low; }}",
        address = in(_) read::<u64>(address), word = in(_) read::<u32>(word),
    );
}

/// Writes 4 bytes.
#[cube]
pub(crate) fn store_global_float(address: u64, #[comptime] offset: u32, x: f32) {
    gpu_asm!(
        "st.global.f32 [{address}+{offset}], {x};",
        address = in(_) read::<u64>(address), x = in(_) read::<f32>(x),
    );
}

/// Writes 8 bytes.
#[cube]
pub(crate) fn store_global_pair(address: u64, #[comptime] offset: u32, low: f32, high: f32) {
    gpu_asm!(
        "st.global.v2.f32 [{address}+{offset}], {{{low}, {high}}};",
        address = in(_) read::<u64>(address), low = in(_) read::<f32>(low),
        high = in(_) read::<f32>(high),
    );
}

/// Writes 16 bytes.
#[cube]
pub(crate) fn store_global_words(address: u64, words: Words4) {
    gpu_asm!("st.global.v4.b32 [{address}], {words};", address = in(_) read::<u64>(address), words = in(_) read::<Words4>(words));
}

/// Writes 4 bytes of shared memory.
#[cube]
pub(crate) fn store_shared_word(address: u32, #[comptime] offset: u32, word: u32) {
    gpu_asm!(
        "st.shared.b32 [{address}+{offset}], {word};",
        address = in(_) read::<u32>(address), word = in(_) read::<u32>(word),
    );
}

/// 16 bytes of shared memory.
#[cube]
pub(crate) fn load_shared_words(address: u32) -> Words4 {
    let words: Words4;
    gpu_asm!(
        "ld.shared.v4.b32 {words}, [{address}];",
        words = out(_) words, address = in(_) read::<u32>(address),
    );
    words
}

/// Copies 16 bytes to shared memory, some time before [`copies_landed`] returns.
#[cube]
pub(crate) fn copy_16(
    to: u32,
    #[comptime] to_offset: u32,
    from: u64,
    #[comptime] from_offset: u32,
) {
    gpu_asm!(
        "cp.async.cg.shared.global [{to}+{to_offset}], [{from}+{from_offset}], 16;",
        to = in(_) read::<u32>(to), from = in(_) read::<u64>(from),
    );
}

/// As [`copy_16`], the last `16 - bytes` as zeros; `bytes` of 0 reads nothing.
#[cube]
pub(crate) fn copy_16_of(
    to: u32,
    #[comptime] to_offset: u32,
    from: u64,
    #[comptime] from_offset: u32,
    bytes: u32,
) {
    gpu_asm!(
        "cp.async.cg.shared.global [{to}+{to_offset}], [{from}+{from_offset}], 16, {bytes};",
        to = in(_) read::<u32>(to), from = in(_) read::<u64>(from), bytes = in(_) read::<u32>(bytes),
    );
}

/// Makes this thread's copies since the last call a group.
#[cube]
pub(crate) fn commit_copies() {
    gpu_asm!("cp.async.commit_group;");
}

/// Waits until at most `pending` of this thread's groups are on their way.
#[cube]
pub(crate) fn wait_copies(#[comptime] pending: u32) {
    gpu_asm!("cp.async.wait_group {pending};");
}

/// Four matrices of 8x8 16-bit elements; lane `8 i + j` gives the address of row `j` of matrix `i`.
/// Lane `l` gets of each the elements `2 (l % 4)` and the next of row `l / 4`.
#[cube]
pub(crate) fn load_matrices(address: u32, #[comptime] offset: u32) -> Words4 {
    let words: Words4;
    gpu_asm!(
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {words}, [{address}+{offset}];",
        words = out(_) words, address = in(_) read::<u32>(address),
    );
    words
}

/// As [`load_matrices`], each transposed.
#[cube]
pub(crate) fn load_matrices_transposed(address: u32, #[comptime] offset: u32) -> Words4 {
    let words: Words4;
    gpu_asm!(
        "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {words}, [{address}+{offset}];",
        words = out(_) words, address = in(_) read::<u32>(address),
    );
    words
}

/// Two matrices, whose addresses lanes 0 to 15 give.
#[cube]
pub(crate) fn load_matrix_pair(address: u32, #[comptime] offset: u32) -> Vector<u32, Const<2>> {
    let words: Vector<u32, Const<2>>;
    gpu_asm!(
        "ldmatrix.sync.aligned.m8n8.x2.shared.b16 {words}, [{address}+{offset}];",
        words = out(_) words, address = in(_) read::<u32>(address),
    );
    words
}

/// Two matrices, each transposed.
#[cube]
pub(crate) fn load_matrix_pair_transposed(
    address: u32,
    #[comptime] offset: u32,
) -> Vector<u32, Const<2>> {
    let words: Vector<u32, Const<2>>;
    gpu_asm!(
        "ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {words}, [{address}+{offset}];",
        words = out(_) words, address = in(_) read::<u32>(address),
    );
    words
}

/// `sums + a b`, a of 16x16 and b of 16x8 elements of type `element`: `bf16` or `f16`.
#[cube]
pub(crate) fn mma_16(
    a: Words4,
    b0: u32,
    b1: u32,
    sums: Sums,
    #[comptime] element: &'static str,
) -> Sums {
    let to: Sums;
    gpu_asm!(
        "mma.sync.aligned.m16n8k16.row.col.f32.{element}.{element}.f32 {to}, {a}, {{{b0}, {b1}}}, {sums};",
        to = out(_) to, a = in(_) read::<Words4>(a), b0 = in(_) read::<u32>(b0), b1 = in(_) read::<u32>(b1), sums = in(_) read::<Sums>(sums),
        options(nomem),
    );
    to
}

/// `sums + a b`, a of 16x8 and b of 8x8 elements.
#[cube]
pub(crate) fn mma_8(
    a0: u32,
    a1: u32,
    b: u32,
    sums: Sums,
    #[comptime] element: &'static str,
) -> Sums {
    let to: Sums;
    gpu_asm!(
        "mma.sync.aligned.m16n8k8.row.col.f32.{element}.{element}.f32 {to}, {{{a0}, {a1}}}, {{{b}}}, {sums};",
        to = out(_) to, a0 = in(_) read::<u32>(a0), a1 = in(_) read::<u32>(a1), b = in(_) read::<u32>(b), sums = in(_) read::<Sums>(sums),
        options(nomem),
    );
    to
}

/// Two numbers rounded to `element`, the first in the low half.
#[cube]
pub(crate) fn pack_halves(low: f32, high: f32, #[comptime] element: &'static str) -> u32 {
    let word: u32;
    gpu_asm!(
        "cvt.rn.{element}x2.f32 {word}, {high}, {low};",
        word = out(_) word, high = in(_) read::<f32>(high), low = in(_) read::<f32>(low),
        options(nomem),
    );
    word
}

/// `1 / x` within a unit in the last place; 0 where that is no normal number.
#[cube]
pub(crate) fn reciprocal(x: f32) -> f32 {
    let y: f32;
    gpu_asm!("rcp.approx.ftz.f32 {y}, {x};", y = out(_) y, x = in(_) read::<f32>(x), options(nomem));
    y
}

/// 2 to the power of `x`, with a relative error of 2e-7; 0 below -126.
#[cube]
pub(crate) fn exp2(x: f32) -> f32 {
    let y: f32;
    gpu_asm!("ex2.approx.ftz.f32 {y}, {x};", y = out(_) y, x = in(_) read::<f32>(x), options(nomem));
    y
}

/// Sine of radians between -pi and pi, within 5e-7.
#[cube]
pub(crate) fn sine_of_turn(x: f32) -> f32 {
    let y: f32;
    gpu_asm!("sin.approx.ftz.f32 {y}, {x};", y = out(_) y, x = in(_) read::<f32>(x), options(nomem));
    y
}

/// Cosine of radians between -pi and pi, within 5e-7.
#[cube]
pub(crate) fn cosine_of_turn(x: f32) -> f32 {
    let y: f32;
    gpu_asm!("cos.approx.ftz.f32 {y}, {x};", y = out(_) y, x = in(_) read::<f32>(x), options(nomem));
    y
}

/// The larger number.
#[cube]
pub(crate) fn max(x: f32, y: f32) -> f32 {
    let z: f32;
    gpu_asm!("max.f32 {z}, {x}, {y};", z = out(_) z, x = in(_) read::<f32>(x), y = in(_) read::<f32>(y), options(nomem));
    z
}

/// What the lane whose number differs by the bits of `lanes` has; all lanes take part.
#[cube]
pub(crate) fn from_lane_xor(x: f32, #[comptime] lanes: u32) -> f32 {
    let y: f32;
    gpu_asm!(
        "shfl.sync.bfly.b32 {y}, {x}, {lanes}, 31, 0xffffffff;",
        y = out(_) y, x = in(_) read::<f32>(x),
        options(nomem),
    );
    y
}

/// Bit `l` says whether `flag` of lane `l` is not 0; all lanes take part.
#[cube]
pub(crate) fn ballot(flag: u32) -> u32 {
    let bits: u32;
    gpu_asm!(
        "{{ .reg .pred p; setp.ne.u32 p, {flag}, 0; vote.sync.ballot.b32 {bits}, p, 0xffffffff; }}",
        bits = out(_) bits, flag = in(_) read::<u32>(flag),
        options(nomem),
    );
    bits
}

/// Makes what this thread's copies wrote visible to tensor cores that read shared memory themselves.
#[cube]
pub(crate) fn fence_copies() {
    gpu_asm!("fence.proxy.async.shared::cta;");
}

/// How a group of warps finds lines of 128 bytes at `address`, a multiple of 1024 bytes: copies of 16
/// bytes swizzled over 8 lines, 1024 bytes from one 8 to the next.
#[cube]
pub(crate) fn matrix_descriptor(address: u32) -> u64 {
    const SWIZZLE_128: u64 = 1 << 62;
    const EIGHTS: u64 = (1024 / 16) << 32;
    u64::cast_from(address / 16) + comptime!(SWIZZLE_128 | EIGHTS | 1 << 16)
}

/// `sums + a b` for 64 rows of `a` and `columns` lines of `b`, `parts` times 16 deep, by a group of four
/// warps; lane `l` of warp `w` has rows `16 w + l / 4` and 8 below, of every 8 columns `2 (l % 4)` and
/// the next. Returns when the sums are there.
#[cube]
pub(crate) fn group_mma<N: Size>(
    sums: Vector<f32, N>,
    left: u64,
    right: u64,
    #[comptime] columns: u32,
    #[comptime] parts: u32,
    #[comptime] element: &'static str,
) -> Vector<f32, N> {
    let to: Vector<f32, N>;
    gpu_asm!(
        "{{ {text} }} // {to} {sums} {left} {right}",
        text = const group_mma_text(columns, parts, element),
        to = out(_) to,
        sums = in(_) read::<Vector<f32, N>>(sums),
        left = in(_) read::<u64>(left),
        right = in(_) read::<u64>(right),
        options(nomem),
    );
    to
}

/// The instructions. Sums are read and written in place, so they are copied first, which costs nothing:
/// the assembler gives both the same registers.
fn group_mma_text(columns: u32, parts: u32, element: &str) -> String {
    let n = columns / 2;
    let mut text = String::from(".reg .pred one; .reg .b64 a, b; setp.eq.u32 one, 0, 0; ");
    for register in 0..n {
        text += &format!("mov.f32 %{register}, %{}; ", n + register);
    }
    text += "wgmma.fence.sync.aligned; ";
    for part in 0..parts {
        // 16 elements are 32 bytes, counted in 16.
        text += &format!(
            "add.u64 a, $2, {at}; add.u64 b, $3, {at}; \
             wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{element}.{element} \
             $0, a, b, one, 1, 1, 0, 0; ",
            at = 2 * part
        );
    }
    text + "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;"
}
