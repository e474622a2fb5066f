//! Instructions as they are executed: names resolved to rows, labels to places, modifiers to enums.

use std::sync::Arc;

use crate::ast::Space;
use crate::registers::{PredUse, Reg};
use crate::rounding::Rounding;
use crate::stats::Class;
use crate::types::Ty;

/// A decoded instruction.
#[derive(Clone, Debug)]
pub(crate) struct Inst {
    pub(crate) op: Op,
    pub(crate) guard: PredUse,
    pub(crate) line: u32,
    pub(crate) class: Class,
    /// Registers it names that are sums of a [`GroupProduct`], unless it is one itself.
    pub(crate) sums: Box<[Reg]>,
}

/// How an f32 or f64 result is finished, and for f32 how operands are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mode {
    pub(crate) rounding: Rounding,
    /// Subnormals of operands and result become zero.
    pub(crate) is_ftz: bool,
    /// The result is clamped to [0, 1], NaN becoming 0.
    pub(crate) is_saturated: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum IntOp {
    Add,
    Sub,
    MulLo,
    MulHi,
    MulWide,
    MadLo,
    MadHi,
    MadWide,
    Mul24,
    Mad24,
    Div,
    Rem,
    Abs,
    Neg,
    Min,
    Max,
    Sad,
    AddSat,
    SubSat,
    And,
    Or,
    Xor,
    Not,
    Cnot,
    Shl,
    Shr,
    Bfe,
    /// d, source, base, position, length.
    Bfind,
    BfindShift,
    Brev,
    Popc,
    Clz,
    FunnelLeft,
    FunnelRight,
    FunnelLeftClamp,
    FunnelRightClamp,
    Prmt,
    /// Four bytes times four bytes plus c; signedness of a and b apart.
    Dp4a,
    /// Two halves of a times the low two bytes of b, plus c.
    Dp2aLow,
    /// Two halves of a times the high two bytes of b, plus c.
    Dp2aHigh,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum FloatOp {
    Add,
    Sub,
    Mul,
    Fma,
    Div,
    Min,
    Max,
    MinNan,
    MaxNan,
    Abs,
    Neg,
    Sqrt,
    Rsqrt,
    Rcp,
    Ex2,
    Lg2,
    Sin,
    Cos,
    Tanh,
    CopySign,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

/// How a comparison is combined with a predicate, and what predicates are combined by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Logic {
    And,
    Or,
    Xor,
}

/// A base register, if any, and an offset.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    pub(crate) base: Base,
    pub(crate) offset: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Base {
    None,
    Narrow(Reg),
    Wide(Reg),
}

/// A register that a load writes or a store reads.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Slot {
    Narrow(Reg),
    Wide(Reg),
    /// `_`
    Sink,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum AtomOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Inc,
    Dec,
    Exch,
    Cas,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ShflMode {
    Up,
    Down,
    Bfly,
    Idx,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum VoteMode {
    All,
    Any,
    Uni,
    Ballot,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum BarrierKind {
    Sync,
    Arrive,
    /// A count goes to a register, or whether all or any hold to a predicate.
    Popc {
        pred: PredUse,
        to: Reg,
    },
    Logic {
        logic: Logic,
        pred: PredUse,
        to: Reg,
    },
}

/// Element type of matrix operands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Element {
    F16,
    Bf16,
    Tf32,
    F32,
    S8,
    U8,
    S32,
}

/// Which operand of a warp matrix product a fragment is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Part {
    A,
    B,
    Accumulator,
}

/// A fragment of a warp matrix operand in registers: rows x cols elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fragment {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) element: Element,
    /// Order in which elements follow each other over the lanes.
    pub(crate) is_by_column: bool,
    /// Order in memory. That of an accumulator may differ from the order over the lanes.
    pub(crate) is_stored_by_column: bool,
    pub(crate) n_regs: usize,
}

/// D = A * B + C of a warp. Registers are listed a, b, c, d.
#[derive(Clone, Debug)]
pub(crate) struct Product {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) element: Element,
    /// Signedness and type of B, which may differ for integers.
    pub(crate) element_b: Element,
    pub(crate) from: Element,
    pub(crate) into: Element,
    pub(crate) a: Vec<Reg>,
    pub(crate) b: Vec<Reg>,
    pub(crate) c: Vec<Reg>,
    pub(crate) d: Vec<Reg>,
    /// Layouts of A and B of `wmma`, by which fragments were loaded; `None` for `mma`.
    pub(crate) wmma: Option<(bool, bool)>,
    pub(crate) is_saturated: bool,
}

/// D = A * B + D of four warps, 64 x n, 16 deep, A and B of 16-bit elements in shared memory.
#[derive(Clone, Debug)]
pub(crate) struct GroupProduct {
    pub(crate) n: usize,
    pub(crate) element: Element,
    /// D of one warp: its 16 rows.
    pub(crate) sums: Vec<Reg>,
    /// Descriptors of A and B.
    pub(crate) descriptors: [Reg; 2],
    /// Whether D is added.
    pub(crate) keeps_sums: PredUse,
    /// Whether A * B is subtracted.
    pub(crate) is_negated: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Nop,
    Branch {
        target: u32,
        join: u32,
    },
    BranchIndex {
        index: Reg,
        targets: Vec<u32>,
        join: u32,
    },
    Exit,
    Trap,
    /// Lets other warps run.
    Yield,
    Barrier {
        kind: BarrierKind,
        is_aligned: bool,
        id: Reg,
        threads: Option<Reg>,
    },
    WarpBarrier {
        mask: Reg,
    },
    Move {
        is_wide: bool,
        regs: [Reg; 2],
    },
    MovePred {
        to: Reg,
        from: PredUse,
    },
    /// Parts of `bits` bits, lowest first, to or from one register.
    Pack {
        bits: u32,
        to: Slot,
        from: Vec<Slot>,
    },
    Unpack {
        bits: u32,
        from: Slot,
        to: Vec<Slot>,
    },
    Clock {
        to: Slot,
    },
    Int {
        op: IntOp,
        ty: Ty,
        regs: [Reg; 4],
    },
    Bfi {
        is_wide: bool,
        regs: [Reg; 5],
    },
    Lop3 {
        table: u8,
        regs: [Reg; 4],
        any: Option<(Reg, Logic, PredUse)>,
    },
    /// Addition or subtraction with the carry flag, which is a predicate row.
    Carry {
        ty: Ty,
        is_sub: bool,
        regs: [Reg; 3],
        carry: Reg,
        takes: bool,
        gives: bool,
    },
    Float {
        op: FloatOp,
        ty: Ty,
        mode: Mode,
        regs: [Reg; 4],
    },
    Half {
        op: FloatOp,
        ty: Ty,
        mode: Mode,
        is_relu: bool,
        regs: [Reg; 4],
    },
    TestFinite {
        ty: Ty,
        test: FloatTest,
        to: Reg,
        from: Reg,
    },
    Compare {
        cmp: Cmp,
        ty: Ty,
        is_ftz: bool,
        regs: [Reg; 2],
        combined: Option<(Logic, PredUse)>,
        to: Destination,
    },
    Select {
        is_wide: bool,
        regs: [Reg; 3],
        pred: PredUse,
    },
    SelectSign {
        is_wide: bool,
        is_float: bool,
        regs: [Reg; 4],
    },
    PredLogic {
        logic: Logic,
        to: Reg,
        from: [PredUse; 2],
    },
    Convert {
        to: Ty,
        from: Ty,
        mode: Mode,
        is_integral: bool,
        is_relu: bool,
        slots: [Slot; 2],
    },
    /// Two f32 to a pair; the first operand becomes the upper half.
    ConvertPair {
        to: Ty,
        mode: Mode,
        is_relu: bool,
        regs: [Reg; 3],
    },
    Window {
        is_to_generic: bool,
        space: Space,
        slots: [Slot; 2],
    },
    IsSpace {
        space: Space,
        to: Reg,
        from: Slot,
    },
    Load {
        space: Option<Space>,
        ty: Ty,
        address: Address,
        to: Vec<Slot>,
    },
    Store {
        space: Option<Space>,
        ty: Ty,
        address: Address,
        from: Vec<Slot>,
    },
    Atomic {
        space: Option<Space>,
        op: AtomOp,
        ty: Ty,
        address: Address,
        to: Slot,
        from: [Slot; 2],
    },
    Shuffle {
        mode: ShflMode,
        to: Slot,
        pred: Option<Reg>,
        regs: [Reg; 3],
        mask: Reg,
    },
    Vote {
        mode: VoteMode,
        to: Reg,
        from: PredUse,
        mask: Reg,
    },
    Match {
        is_all: bool,
        is_wide: bool,
        to: Reg,
        pred: Option<Reg>,
        from: Reg,
        mask: Reg,
    },
    Reduce {
        op: AtomOp,
        ty: Ty,
        to: Reg,
        from: Reg,
        mask: Reg,
    },
    Elect {
        to: Slot,
        pred: Reg,
        mask: Reg,
    },
    ActiveMask {
        to: Reg,
    },
    CopyAsync {
        bytes: u32,
        to: Address,
        from: Address,
        source_bytes: Option<Reg>,
        ignored: Option<PredUse>,
    },
    CopyCommit,
    /// Waits until at most this many groups are open.
    CopyWait {
        n_open: u32,
    },
    /// Waits for everything.
    CopyWaitAll,
    /// A bulk copy from global to shared memory that completes on an mbarrier.
    CopyBulk {
        to: Address,
        from: Address,
        bytes: Reg,
        barrier: Address,
    },
    CopyArrive {
        barrier: Address,
        is_counted: bool,
    },
    MbarrierInit {
        barrier: Address,
        count: Reg,
    },
    MbarrierInvalidate {
        barrier: Address,
    },
    MbarrierArrive {
        barrier: Address,
        to: Slot,
        count: Option<Reg>,
        expected: Option<Reg>,
        drops: bool,
    },
    MbarrierExpect {
        barrier: Address,
        bytes: Reg,
    },
    MbarrierTest {
        barrier: Address,
        to: Reg,
        state: MbarrierState,
    },
    LoadMatrix {
        address: Address,
        is_transposed: bool,
        to: Vec<Reg>,
    },
    StoreMatrix {
        address: Address,
        is_transposed: bool,
        from: Vec<Reg>,
    },
    LoadFragment {
        space: Option<Space>,
        fragment: Fragment,
        address: Address,
        stride: Option<Reg>,
        to: Vec<Reg>,
    },
    StoreFragment {
        space: Option<Space>,
        fragment: Fragment,
        address: Address,
        stride: Option<Reg>,
        from: Vec<Reg>,
    },
    Product(Box<Product>),
    GroupProduct(Arc<GroupProduct>),
    /// Orders accesses to registers before products of a group that use them.
    GroupFence,
    GroupCommit,
    /// Waits until at most this many groups of products are open.
    GroupWait {
        n_open: u32,
    },
    /// Makes writes to shared memory visible to products of a group.
    ProxyFence,
}

/// What a test of an mbarrier waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum MbarrierState {
    Token(Reg),
    Parity(Reg),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum FloatTest {
    Finite,
    Infinite,
    Number,
    NotANumber,
    Normal,
    Subnormal,
}

/// Where a comparison goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Destination {
    /// The outcome, and the outcome of the opposite.
    Preds(Option<Reg>, Option<Reg>),
    /// `set`: all ones or 1.0.
    Word { to: Reg, is_float: bool },
}
