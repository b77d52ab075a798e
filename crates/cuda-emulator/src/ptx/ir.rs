//! A kernel ready to run: instructions over numbered registers of 32 lanes.

/// Number of a register in its file.
pub(crate) type Slot = u32;

/// A kernel.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    /// Bytes of the parameters, each at its alignment.
    pub(crate) params: Vec<Param>,
    pub(crate) param_bytes: usize,
    pub(crate) max_threads: Option<[u32; 3]>,
    pub(crate) exact_threads: Option<[u32; 3]>,
    pub(crate) shared_bytes: u32,
    pub(crate) local_bytes: u32,
    pub(crate) code: Vec<Inst>,
    pub(crate) narrow: Vec<Option<u32>>,
    pub(crate) wide: Vec<Option<u64>>,
    pub(crate) predicates: usize,
    /// Has a barrier: the warps of a block must be kept side by side.
    pub(crate) barriers: bool,
}

/// A parameter's place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Param {
    pub(crate) offset: usize,
    pub(crate) bytes: usize,
}

/// An instruction.
#[derive(Debug)]
pub(crate) struct Inst {
    pub(crate) op: Op,
    pub(crate) guard: Option<(Slot, bool)>,
    pub(crate) line: u32,
}

/// Where an address points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Param,
}

/// What an address is built from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Base {
    None,
    Narrow(Slot),
    Wide(Slot),
}

/// Base and offset.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Address {
    pub(crate) space: Space,
    pub(crate) base: Base,
    pub(crate) offset: i64,
}

/// A register of either file, or nothing (`_`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reg {
    Narrow(Slot),
    Wide(Slot),
    Nothing,
}

/// A number's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ty {
    U8,
    S8,
    U16,
    S16,
    U32,
    S32,
    U64,
    S64,
    F32,
    F64,
}

impl Ty {
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::S8 => 1,
            Self::U16 | Self::S16 => 2,
            Self::U32 | Self::S32 | Self::F32 => 4,
            Self::U64 | Self::S64 | Self::F64 => 8,
        }
    }

    pub(crate) fn signed(self) -> bool {
        matches!(self, Self::S8 | Self::S16 | Self::S32 | Self::S64)
    }

    pub(crate) fn float(self) -> bool {
        matches!(self, Self::F32 | Self::F64)
    }
}

/// One operand in, one out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum F1 {
    Mov,
    Not,
    Neg,
    Abs,
    Cnot,
    Popc,
    Clz,
    Brev,
    BfindU,
    BfindS,
    BfindShiftU,
    BfindShiftS,
    Sext16,
    Zext16,
    FNeg,
    FAbs,
    FSqrt,
    FRcp,
}

/// Two operands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum F2 {
    Add,
    Sub,
    Mul,
    MulHiU,
    MulHiS,
    DivU,
    DivS,
    RemU,
    RemS,
    MinU,
    MinS,
    MaxU,
    MaxS,
    And,
    Or,
    Xor,
    Shl,
    ShrU,
    ShrS,
    Mul24,
    FAdd,
    FSub,
    FMul,
    FDiv,
    FMin,
    FMax,
}

/// Three operands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum F3 {
    Mad,
    Lop3(u8),
    Prmt,
    ShfLWrap,
    ShfLClamp,
    ShfRWrap,
    ShfRClamp,
    BfeU,
    BfeS,
    SadU,
    SadS,
    FFma,
}

/// A comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    /// The same, also true for a NaN.
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

/// How predicates are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Logic {
    And,
    Or,
    Xor,
}

/// What an atomic operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Atomic {
    Add,
    FAdd,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exchange,
    CompareSwap,
    Inc,
    Dec,
}

/// Which lane a shuffle reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

/// What a vote answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

/// A special register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Special {
    Tid(usize),
    Ntid(usize),
    Ctaid(usize),
    Nctaid(usize),
    Lane,
    Warp,
    Warps,
    Sm,
    Sms,
    Clock,
    MaskEq,
    MaskLt,
    MaskLe,
    MaskGt,
    MaskGe,
    DynamicShared,
    TotalShared,
}

/// How a conversion rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Round {
    Nearest,
    Zero,
    Down,
    Up,
}

/// What an instruction does. `d` is where the result goes.
#[derive(Debug)]
pub(crate) enum Op {
    N1(F1, Slot, Slot),
    N2(F2, Slot, Slot, Slot),
    N3(F3, Slot, [Slot; 3]),
    /// Rotate right by a known number of bits.
    Rotate(Slot, Slot, u32),
    /// Insert bits: value, base, position, length.
    Bfi(Slot, [Slot; 4]),
    W1(F1, Slot, Slot),
    W2(F2, Slot, Slot, Slot),
    W3(F3, Slot, [Slot; 3]),
    /// Shift of 64 bits by a register of 32.
    Shift64(F2, Slot, Slot, Slot),
    /// Count of something in 64 bits, into 32.
    Count64(F1, Slot, Slot),
    /// 32 × 32 bits into 64, plus a third.
    Wide {
        signed: bool,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Option<Slot>,
    },
    /// Two halves out of 64 bits, and together again.
    Split(Reg, Reg, Slot),
    Join(Slot, Slot, Slot),
    /// Sum with carry: narrow or wide, `subtract`, with carry in, with carry out.
    Carry {
        wide: bool,
        subtract: bool,
        takes: bool,
        gives: bool,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    /// A cheap cvt of integers of these widths: zero-extend, sign-extend, truncate.
    WidenU(Slot, Slot),
    WidenS(Slot, Slot),
    Truncate(Slot, Slot),
    Convert {
        to: Ty,
        from: Ty,
        round: Round,
        whole: bool,
        d: Reg,
        a: Reg,
    },
    Select32 {
        d: Slot,
        a: Slot,
        b: Slot,
        p: Slot,
    },
    Select64 {
        d: Slot,
        a: Slot,
        b: Slot,
        p: Slot,
    },
    Compare {
        cmp: Cmp,
        ty: Ty,
        d: Option<Slot>,
        q: Option<Slot>,
        a: Slot,
        b: Slot,
        with: Option<(Logic, Slot, bool)>,
    },
    /// `set`: all ones or 1.0 where it holds.
    Spread {
        d: Slot,
        p: Slot,
        float: bool,
    },
    PLogic(Logic, Slot, Slot, Slot),
    PNot(Slot, Slot),
    PMov(Slot, Slot),
    PSet(Slot, bool),
    Read(Special, Reg),
    Load {
        ty: Ty,
        to: [Reg; 4],
        count: u8,
        address: Address,
    },
    Store {
        ty: Ty,
        from: [Reg; 4],
        count: u8,
        address: Address,
    },
    Atomic {
        what: Atomic,
        ty: Ty,
        d: Reg,
        address: Address,
        b: Reg,
        c: Reg,
    },
    Shuffle {
        how: Shuffle,
        d: Slot,
        p: Option<Slot>,
        a: Slot,
        b: Slot,
        c: Slot,
        mask: Slot,
    },
    Vote {
        what: Vote,
        d: Slot,
        p: Slot,
        negate: bool,
        mask: Slot,
    },
    ActiveMask(Slot),
    WarpSync(Slot),
    Barrier,
    Branch(usize),
    Exit,
    Trap,
    Nothing,
}
