//! PTX text is executed: a compiled kernel, hand-written ones, and those that must be refused.
#![allow(unsafe_code, clippy::multiple_unsafe_ops_per_block, reason = "calls of a C library")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "test")]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "test")]

mod common;

use common::{Driver, kernel};
use cuda_emulator::{Cause, Emulator, Fault, Memory, Plan, library};

fn driver() -> Driver {
    Driver::load(&library())
}

/// Runs a kernel over 32 lanes: lane i reads `input[i]` and what the body stores to `%rd38` is the answer.
fn run(body: &str, input: &[u64; 32]) -> [u64; 32] {
    let mut emulator = Emulator::lock(Plan::default());
    emulator.leaves();
    let driver = driver();
    driver.start();
    let prologue = "mov.u32 %r39, %tid.x; mul.wide.u32 %rd37, %r39, 8; add.s64 %rd38, %rd38, %rd37; \
                    add.s64 %rd39, %rd39, %rd37; ld.global.u64 %rd0, [%rd39]; ld.global.v2.u32 {%r0, %r1}, [%rd39];\n";
    let module = driver.module(&kernel(&format!("{prologue}{body}"))).unwrap_or_else(|error| panic!("{error:?}"));
    let bytes: Vec<u8> = input.iter().flat_map(|value| value.to_le_bytes()).collect();
    let (from, to) = (driver.upload(&bytes), driver.upload(&[0; 256]));
    assert_eq!(driver.launch(driver.function(module, "test"), 1, 32, 0, &[to, from]), 0);
    let answer = driver.download(to, 256);
    let mut out = [0; 32];
    for (value, bytes) in out.iter_mut().zip(answer.chunks_exact(8)) {
        *value = u64::from_le_bytes(bytes.try_into().unwrap());
    }
    driver.stop();
    out
}

/// What every lane must answer: `f` of its input, in the low 32 bits.
fn expect32(body: &str, f: impl Fn(u32, u32) -> u32) {
    let input = inputs();
    let out = run(&format!("{body}\ncvt.u64.u32 %rd1, %r2; st.global.u64 [%rd38], %rd1;"), &input);
    for (lane, (&value, &answer)) in input.iter().zip(&out).enumerate() {
        let (low, high) = (value as u32, (value >> 32) as u32);
        assert_eq!(answer, u64::from(f(low, high)), "{body}: lane {lane}, {low:#x}, {high:#x}");
    }
}

fn expect64(body: &str, f: impl Fn(u64, u64) -> u64) {
    let input = inputs();
    let out = run(&format!("mov.u64 %rd1, 0x9e3779b97f4a7c15;\n{body}\nst.global.u64 [%rd38], %rd2;"), &input);
    for (lane, (&value, &answer)) in input.iter().zip(&out).enumerate() {
        assert_eq!(answer, f(value, 0x9e37_79b9_7f4a_7c15), "{body}: lane {lane}, {value:#x}");
    }
}

fn inputs() -> [u64; 32] {
    let edges = [0, 1, 0x8000_0000, 0x7fff_ffff, 0xffff_ffff, 1 << 63, u64::MAX, 0x0000_0005_ffff_fff9, 0x1f_0000_0001];
    let mut seed = 7_u64;
    std::array::from_fn(|lane| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        edges.get(lane).copied().unwrap_or(seed ^ (seed >> 31))
    })
}

#[test]
fn sums_and_products_of_32_bits() {
    expect32("add.s32 %r2, %r0, %r1;", u32::wrapping_add);
    expect32("sub.u32 %r2, %r0, %r1;", u32::wrapping_sub);
    expect32("mul.lo.s32 %r2, %r0, %r1;", u32::wrapping_mul);
    expect32("mul.hi.u32 %r2, %r0, %r1;", |a, b| ((u64::from(a) * u64::from(b)) >> 32) as u32);
    expect32("mul.hi.s32 %r2, %r0, %r1;", |a, b| ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32);
    expect32("mad.lo.u32 %r2, %r0, %r1, -3;", |a, b| a.wrapping_mul(b).wrapping_sub(3));
    expect32("mad.hi.u32 %r2, %r0, %r1, %r0;", |a, b| (((u64::from(a) * u64::from(b)) >> 32) as u32).wrapping_add(a));
    expect32("sad.s32 %r2, %r0, %r1, 5;", |a, b| (a as i32).abs_diff(b as i32).wrapping_add(5));
    expect32("div.u32 %r2, %r0, 7;", |a, _| a / 7);
    expect32("rem.s32 %r2, %r0, -7;", |a, _| (a as i32).wrapping_rem(-7) as u32);
    expect32("div.s32 %r2, %r0, 3;", |a, _| (a as i32 / 3) as u32);
    expect32("min.s32 %r2, %r0, %r1;", |a, b| (a as i32).min(b as i32) as u32);
    expect32("max.u32 %r2, %r0, %r1;", u32::max);
    expect32("neg.s32 %r2, %r0;", |a, _| a.wrapping_neg());
    expect32("abs.s32 %r2, %r0;", |a, _| (a as i32).unsigned_abs());
}

#[test]
fn bits_of_32() {
    expect32("and.b32 %r2, %r0, %r1;", |a, b| a & b);
    expect32("or.b32 %r2, %r0, %r1;", |a, b| a | b);
    expect32("xor.b32 %r3, %r0, %r1; not.b32 %r2, %r3;", |a, b| !(a ^ b));
    expect32("shl.b32 %r2, %r0, %r1;", |a, b| a.checked_shl(b).unwrap_or(0));
    expect32("shr.u32 %r2, %r0, 33;", |_, _| 0);
    expect32("shr.s32 %r2, %r0, 40;", |a, _| ((a as i32) >> 31) as u32);
    expect32("shf.l.wrap.b32 %r2, %r0, %r1, 7;", |a, b| (b << 7) | (a >> 25));
    expect32("mov.u32 %r3, 12; shf.r.wrap.b32 %r2, %r0, %r0, %r3;", |a, _| a.rotate_right(12));
    expect32("shf.r.clamp.b32 %r2, %r0, %r1, 40;", |_, b| b);
    expect32("shf.l.clamp.b32 %r2, %r0, %r1, 32;", |a, _| a);
    expect32("prmt.b32 %r2, %r0, 0, 0x1032;", |a, _| a.rotate_right(16));
    expect32("prmt.b32 %r2, %r0, %r1, 0x6543;", |a, b| (b << 8) | (a >> 24));
    expect32("prmt.b32 %r2, %r0, %r1, 0xbf04;", |a, b| {
        let sign = |x: u32| if x >> 31 == 1 { 0xff } else { 0 };
        (b & 0xff) | (a & 0xff) << 8 | sign(b) << 16 | sign(a) << 24
    });
    expect32("lop3.b32 %r2, %r0, %r1, 0x0f0f00ff, 0x96;", |a, b| a ^ b ^ 0x0f0f_00ff);
    expect32("lop3.b32 %r2, %r0, %r1, 0x0f0f00ff, 0x2d;", |a, b| !a ^ (!b & 0x0f0f_00ff) ^ u32::MAX ^ u32::MAX);
    expect32("bfe.u32 %r2, %r0, 5, 9;", |a, _| (a >> 5) & 0x1ff);
    expect32("bfe.s32 %r2, %r0, 20, 30;", |a, _| ((a as i32) >> 20) as u32);
    expect32("bfi.b32 %r2, %r0, %r1, 8, 12;", |a, b| (b & !0xfff00) | ((a << 8) & 0xfff00));
    expect32("popc.b32 %r2, %r0;", |a, _| a.count_ones());
    expect32("clz.b32 %r2, %r0;", |a, _| a.leading_zeros());
    expect32("brev.b32 %r2, %r0;", |a, _| a.reverse_bits());
    expect32("bfind.u32 %r2, %r0;", |a, _| 31_u32.wrapping_sub(a.leading_zeros()));
    expect32(
        "cvt.u16.u32 %rs1, %r0; add.s16 %rs2, %rs1, 9; setp.lt.s16 %p1, %rs2, 0; selp.u32 %r2, 1, 0, %p1;",
        |a, _| u32::from((a as i16).wrapping_add(9) < 0),
    );
}

#[test]
fn numbers_of_64_bits() {
    expect64("add.s64 %rd2, %rd0, %rd1;", u64::wrapping_add);
    expect64("sub.s64 %rd2, %rd0, %rd1;", u64::wrapping_sub);
    expect64("mul.lo.s64 %rd2, %rd0, %rd1;", u64::wrapping_mul);
    expect64("mul.hi.u64 %rd2, %rd0, %rd1;", |a, b| ((u128::from(a) * u128::from(b)) >> 64) as u64);
    expect64("mad.lo.s64 %rd2, %rd0, %rd1, %rd0;", |a, b| a.wrapping_mul(b).wrapping_add(a));
    expect64("shl.b64 %rd2, %rd0, 13;", |a, _| a << 13);
    expect64("shr.s64 %rd2, %rd0, 70;", |a, _| ((a as i64) >> 63) as u64);
    expect64("min.s64 %rd2, %rd0, %rd1;", |a, b| (a as i64).min(b as i64) as u64);
    expect64("rem.u64 %rd2, %rd0, 1000003;", |a, _| a % 1_000_003);
    expect64("mul.wide.u32 %rd2, %r0, %r1;", |a, _| (a & 0xffff_ffff) * (a >> 32));
    expect64("mul.wide.s32 %rd2, %r0, -5;", |a, _| (i64::from(a as i32) * -5) as u64);
    expect64("mad.wide.u32 %rd2, %r0, %r1, %rd1;", |a, b| ((a & 0xffff_ffff) * (a >> 32)).wrapping_add(b));
    expect64("mov.b64 {%r5, %r6}, %rd0; mov.b64 %rd2, {%r6, %r5};", |a, _| a.rotate_left(32));
    expect64("cvt.s64.s32 %rd2, %r0;", |a, _| i64::from(a as i32) as u64);
    expect64("cvt.u64.u8 %rd2, %r0;", |a, _| a & 255);
    expect64("setp.lt.u64 %p1, %rd0, %rd1; selp.b64 %rd2, %rd0, %rd1, %p1;", u64::min);
    expect64("setp.gt.s64 %p1, %rd0, %rd1; @%p1 mov.u64 %rd2, 1; @!%p1 mov.u64 %rd2, 2;", |a, b| {
        if a as i64 > b as i64 { 1 } else { 2 }
    });
    expect64("popc.b64 %r2, %rd0; cvt.u64.u32 %rd2, %r2;", |a, _| u64::from(a.count_ones()));
    let carry =
        "mov.b64 {%r5, %r6}, %rd0; mov.b64 {%r7, %r8}, %rd1; add.cc.u32 %r9, %r5, %r7; addc.u32 %r10, %r6, %r8;";
    expect64(&format!("{carry} mov.b64 %rd2, {{%r9, %r10}};"), u64::wrapping_add);
    let borrow = carry.replace("addc", "subc").replace("add", "sub");
    expect64(&format!("{borrow} mov.b64 %rd2, {{%r9, %r10}};"), u64::wrapping_sub);
    let product = "mov.b64 {%r5, %r6}, %rd0; mov.b64 {%r7, %r8}, %rd1; mad.lo.cc.u32 %r9, %r5, %r7, 77; madc.hi.u32 %r10, %r5, %r7, 0;";
    expect64(&format!("{product} mov.b64 %rd2, {{%r9, %r10}};"), |a, b| (a & 0xffff_ffff) * (b & 0xffff_ffff) + 77);
}

#[test]
fn floating_point() {
    let f = |bits: u32| f32::from_bits(bits & 0x81ff_ffff | 0x3e00_0000);
    let both = "and.b32 %r3, %r0, 0x81ffffff; or.b32 %r3, %r3, 0x3e000000; mov.b32 %f0, %r3; \
                and.b32 %r4, %r1, 0x81ffffff; or.b32 %r4, %r4, 0x3e000000; mov.b32 %f1, %r4;";
    let end = "mov.b32 %r2, %f2;";
    expect32(&format!("{both} fma.rn.f32 %f2, %f0, %f1, %f0; {end}"), |a, b| f(a).mul_add(f(b), f(a)).to_bits());
    expect32(&format!("{both} add.f32 %f2, %f0, %f1; {end}"), |a, b| (f(a) + f(b)).to_bits());
    expect32(&format!("{both} mul.f32 %f2, %f0, 0f3FC00000; {end}"), |a, _| (f(a) * 1.5).to_bits());
    expect32(&format!("{both} div.rn.f32 %f2, %f0, %f1; {end}"), |a, b| (f(a) / f(b)).to_bits());
    expect32(&format!("{both} setp.ltu.f32 %p1, %f0, %f1; selp.f32 %f2, %f0, %f1, %p1; {end}"), |a, b| {
        f(a).min(f(b)).to_bits()
    });
    expect32("cvt.rn.f32.u32 %f2, %r0; mov.b32 %r2, %f2;", |a, _| (a as f32).to_bits());
    expect32("cvt.rz.f32.s32 %f2, %r0; cvt.rzi.s32.f32 %r2, %f2;", |a, _| {
        // Towards zero, at 24 bits of mantissa.
        let (sign, size) = (a as i32, (a as i32).unsigned_abs());
        let cut = 8_u32.saturating_sub(size.leading_zeros());
        let size = size >> cut << cut;
        if sign < 0 { size.wrapping_neg() } else { size }
    });
    expect32("cvt.f64.f32 %fd0, 0f40490FDB; cvt.rn.f32.f64 %f2, %fd0; mov.b32 %r2, %f2;", |_, _| 0x4049_0fdb);
}

#[test]
fn lanes_that_go_different_ways_meet_again() {
    // Lane i runs its loop i times; then all vote, which only works when all are there.
    let body = "mov.u32 %r2, 0; mov.u32 %r3, 0;\nloop: setp.ge.u32 %p1, %r3, %r39; @%p1 bra done;\n\
                add.u32 %r2, %r2, %r3; add.u32 %r3, %r3, 1; bra.uni loop;\ndone:\n\
                vote.sync.ballot.b32 %r4, 1, 0xffffffff; setp.ne.u32 %p2, %r4, 0xffffffff; @%p2 trap;\n\
                cvt.u64.u32 %rd1, %r2; st.global.u64 [%rd38], %rd1;";
    let out = run(body, &[0; 32]);
    assert_eq!(out, std::array::from_fn(|lane| (0..lane as u64).sum::<u64>()));
}

#[test]
fn lanes_exchange_values() {
    let shuffle = |form: &str| {
        run(
            &format!("{form} cvt.u64.u32 %rd1, %r2; st.global.u64 [%rd38], %rd1;"),
            &std::array::from_fn(|lane| lane as u64),
        )
    };
    assert_eq!(shuffle("shfl.sync.bfly.b32 %r2, %r0, 5, 31, -1;"), std::array::from_fn(|lane| lane as u64 ^ 5));
    let up = shuffle("shfl.sync.up.b32 %r2|%p1, %r0, 3, 0, -1; @!%p1 mov.u32 %r2, 99;");
    assert_eq!(up, std::array::from_fn(|lane| if lane < 3 { 99 } else { lane as u64 - 3 }));
    let down = shuffle("shfl.sync.down.b32 %r2, %r0, 4, 31, -1;");
    assert_eq!(down, std::array::from_fn(|lane| if lane > 27 { lane as u64 } else { lane as u64 + 4 }));
    let index = shuffle("shfl.sync.idx.b32 %r2, %r0, 2, 0x181f, -1;");
    assert_eq!(index, std::array::from_fn(|lane| lane as u64 / 8 * 8 + 2), "segments of eight");
}

#[test]
fn shared_local_and_constant_memory_and_barriers() {
    let text = ".version 7.8\n.target sm_70\n.address_size 64\n.const .align 4 .u32 table[4] = {10, 20, 30, 40};\n\
        .global .align 4 .b32 counter;\n.visible .entry turn(.param .u64 out)\n.reqntid 128, 1, 1\n{\n\
        .reg .pred %p<2>; .reg .b32 %r<20>; .reg .b64 %rd<20>;\n.shared .align 4 .b8 box[512]; .local .align 8 .b8 own[16];\n\
        ld.param.u64 %rd0, [out]; mov.u32 %r0, %tid.x; shl.b32 %r1, %r0, 2; mov.u32 %r2, box; add.u32 %r3, %r2, %r1;\n\
        st.shared.u32 [%r3], %r0; bar.sync 0;\n\
        mov.u32 %r4, 127; sub.u32 %r4, %r4, %r0; shl.b32 %r5, %r4, 2; add.u32 %r6, %r2, %r5; ld.shared.u32 %r7, [%r6];\n\
        mov.u64 %rd1, own; cvta.local.u64 %rd2, %rd1; st.u32 [%rd2+8], %r7; ld.local.u32 %r8, [own+8];\n\
        and.b32 %r9, %r0, 3; mul.wide.u32 %rd3, %r9, 4; mov.u64 %rd4, table; add.s64 %rd4, %rd4, %rd3;\n\
        ld.const.u32 %r10, [%rd4]; add.u32 %r8, %r8, %r10; ld.const.u32 %r11, [table+4]; add.u32 %r8, %r8, %r11;\n\
        mul.wide.u32 %rd5, %r0, 4; add.s64 %rd6, %rd0, %rd5; st.global.u32 [%rd6], %r8;\n\
        mov.u64 %rd7, counter; atom.global.add.u32 %r12, [%rd7], 2; red.global.max.s32 [counter], -1; ret;\n}\n";
    let emulator = Emulator::lock(Plan::default());
    let driver = driver();
    driver.start();
    let module = driver.module(text).unwrap();
    let function = driver.function(module, "turn");
    let out = driver.upload(&[0; 512]);
    let (mut counter, mut bytes) = (0_u64, 0_u64);
    let name = c"counter";
    driver.ok(
        "cuModuleGetGlobal_v2",
        &[(&raw mut counter) as u64, (&raw mut bytes) as u64, module, name.as_ptr() as u64],
    );
    assert_eq!(bytes, 4);
    driver.ok("cuMemsetD8_v2", &[counter, 0, 4]);
    assert_eq!(driver.launch(function, 3, 64, 0, &[out]), 1, "another shape than the kernel wants");
    assert_eq!(driver.launch(function, 3, 128, 0, &[out]), 0);
    let answers = driver.download(out, 512);
    for (thread, bytes) in answers.chunks_exact(4).enumerate() {
        let expected = 127 - thread as u32 + [10, 20, 30, 40][thread & 3] + 20;
        assert_eq!(u32::from_le_bytes(bytes.try_into().unwrap()), expected, "thread {thread}");
    }
    assert_eq!(driver.download(counter, 4), (3 * 128 * 2_u32).to_le_bytes());
    assert_eq!(emulator.report().launches["turn"], 1);
    driver.ok("cuModuleUnload", &[module]);
    driver.ok("cuMemFree_v2", &[out]);
    driver.stop();
}

/// Runs a body that must be stopped: the code of the next synchronizing call, and the cause in the report.
fn stopped(body: &str) -> (u32, Cause) {
    let mut emulator = Emulator::lock(Plan { instruction_limit: 10_000, ..Plan::default() });
    emulator.leaves();
    let driver = driver();
    driver.start();
    let stream = driver.get("cuStreamCreateWithPriority", &[1, 0]);
    let module = driver.module(&kernel(body)).unwrap();
    let memory = driver.upload(&[0; 64]);
    assert_eq!(driver.launch(driver.function(module, "test"), 1, 1, stream, &[memory, memory]), 0);
    let code = driver.call("cuStreamSynchronize", &[stream]);
    assert_eq!(driver.call("cuMemFree_v2", &[memory]), code, "it stays");
    let report = emulator.report();
    assert!(report.violations[0].by.contains("kernel test, line"), "{report:?}");
    (code, report.violations[0].cause)
}

#[test]
fn kernels_are_stopped_at_what_the_hardware_refuses() {
    assert_eq!(stopped("ld.global.u32 %r0, [%rd38+2];"), (716, Cause::Misaligned));
    assert_eq!(stopped("ld.global.v4.u32 {%r0, %r1, %r2, %r3}, [%rd38+8];"), (716, Cause::Misaligned));
    assert_eq!(stopped("st.global.u8 [%rd38+64], %r0;"), (700, Cause::OutOfBounds));
    assert_eq!(stopped("ld.global.u64 %rd0, [%rd38+-8];"), (700, Cause::OutOfBounds));
    assert_eq!(stopped("mov.u64 %rd1, 0; ld.u8 %r0, [%rd1];"), (700, Cause::OutOfBounds));
    assert_eq!(stopped("trap;"), (719, Cause::Trap));
    assert_eq!(stopped("again: bra again;"), (702, Cause::Endless));
}

#[test]
fn text_that_does_not_compile_is_refused_with_its_line() {
    let mut emulator = Emulator::lock(Plan::default());
    emulator.leaves();
    let driver = driver();
    driver.start();
    for (body, word) in [
        ("mov.u32 %r1, 0;\nwmma.load.a.sync.aligned.m16n16k16 %r1, [%rd38];", "wmma"),
        ("\nadd.sat.s32 %r1, %r1, %r1;", "add.sat.s32"),
        ("\nadd.s32 %r1, %r1, %rd1;", "%rd1"),
        ("\nadd.s32 %r1, %r1, %r99;", "%r99"),
        ("\n@%p1 bra nowhere;", "nowhere"),
    ] {
        let (code, log) = driver.module(&kernel(body)).unwrap_err();
        assert_eq!(code, 218);
        assert!(log.contains("line 9;") && log.contains(word), "{log}");
    }
    let (code, log) = driver.module(&kernel("").replace("7.8", "8.3")).unwrap_err();
    assert_eq!(code, 222, "{log}");
    assert_eq!(driver.module(&kernel("").replace("sm_70", "sm_100")).unwrap_err().0, 209);
    assert_eq!(driver.module("no text").unwrap_err().0, 200);
}

#[test]
fn slow_memory_shows_in_the_times_of_events_and_nowhere_else() {
    let slow = Fault::Slow { memory: Memory::allocated(2), from: 0, to: 1 << 20, factor: 50.0 };
    let emulator = Emulator::lock(Plan::default().fault(slow));
    let driver = driver();
    driver.start();
    let body = "mov.u32 %r0, 0;\nnext: ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd38]; add.s64 %rd38, %rd38, 16; \
                add.u32 %r0, %r0, 16; setp.lt.u32 %p1, %r0, 1048576; @%p1 bra next;";
    let module = driver.module(&kernel(body)).unwrap();
    let function = driver.function(module, "test");
    let memory = [driver.get("cuMemAlloc_v2", &[1 << 20]), driver.get("cuMemAlloc_v2", &[1 << 20])];
    let stream = driver.get("cuStreamCreateWithPriority", &[1, 0]);
    let events: Vec<u64> = (0..3).map(|_| driver.get("cuEventCreate", &[0])).collect();
    driver.ok("cuEventRecord", &[events[0], stream]);
    for (memory, event) in memory.iter().zip(&events[1..]) {
        assert_eq!(driver.launch(function, 1, 1, stream, &[*memory, 0]), 0);
        driver.ok("cuEventRecord", &[*event, stream]);
    }
    let mut times = [0_f32; 2];
    let mut ask = |index: usize| {
        driver.call("cuEventElapsedTime", &[(&raw mut times[index]) as u64, events[index], events[index + 1]])
    };
    assert_eq!(ask(0), 600, "not done");
    driver.ok("cuStreamSynchronize", &[stream]);
    assert_eq!((ask(0), ask(1)), (0, 0));
    // 2 µs and 1 MiB at 4 TB/s, once and fifty times.
    assert!((times[0] - 0.002_262).abs() < 1e-5 && (times[1] - 0.015_107).abs() < 1e-5, "{times:?}");
    assert_eq!(emulator.report().kernel_bytes, 2 << 20);
    for event in events {
        driver.ok("cuEventDestroy_v2", &[event]);
    }
    driver.ok("cuStreamDestroy_v2", &[stream]);
    driver.ok("cuModuleUnload", &[module]);
    for memory in memory {
        driver.ok("cuMemFree_v2", &[memory]);
    }
    driver.stop();
}
