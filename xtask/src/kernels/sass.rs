//! Reads nvdisasm's listing: which loops a kernel has, and which of the chip's pipes their instructions go to.

/// An innermost loop, counted.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Loop {
    /// Instructions that only the integer pipe takes, and all that is not known.
    pub alu: usize,
    /// On the multiply pipe: multiplications, and additions and moves dressed up as one.
    pub imad: usize,
    /// Multiplications with a 64-bit result.
    pub wide: usize,
    /// Loads and stores of any kind.
    pub memory: usize,
    /// Control flow and the uniform pipe.
    pub other: usize,
    loads_of_16: usize,
    loads_of_8: usize,
}

/// How many bytes of the region a load takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    Sixteen,
    Eight,
}

impl Loop {
    fn bytes(&self) -> usize {
        self.loads_of_16 * 16 + self.loads_of_8 * 8
    }

    /// A count, per 64 bytes that the loop reads.
    pub fn per_64(&self, count: usize) -> f64 {
        count as f64 * 64.0 / self.bytes() as f64
    }

    fn add(&mut self, opcode: &str) {
        let base = opcode.split('.').next().unwrap_or_default();
        match base {
            "IMAD" if opcode.starts_with("IMAD.WIDE") => self.wide += 1,
            // HFMA2 appears in integer code as a move of a constant.
            "IMAD" | "FFMA" | "FMUL" | "FADD" | "HFMA2" => self.imad += 1,
            "LDG" | "LD" | "LDS" | "LDC" | "LDCU" | "STG" | "ST" | "STS" | "ATOMG" | "RED" => self.memory += 1,
            "BRA" | "BSSY" | "BSYNC" | "BREAK" | "BMOV" | "EXIT" | "NOP" | "BAR" | "WARPSYNC" => self.other += 1,
            "S2R" | "CS2R" | "S2UR" | "R2UR" => self.other += 1,
            _ if base.starts_with('U') => self.other += 1,
            _ => self.alu += 1,
        }
        if base == "LDG" {
            let has = |part: &str| opcode.split('.').any(|found| found == part);
            self.loads_of_16 += usize::from(has("128"));
            self.loads_of_8 += usize::from(has("64"));
        }
    }
}

/// The loop that reads most of the region per turn, by loads of this width; at least 64 bytes.
pub fn hot(loops: &[Loop], width: Width) -> Option<Loop> {
    let of = |found: &Loop| match width {
        Width::Sixteen => found.loads_of_16 * 16,
        Width::Eight => found.loads_of_8 * 8,
    };
    loops.iter().filter(|found| of(found) >= 64 && of(found) == found.bytes()).max_by_key(|found| of(found)).cloned()
}

/// The kernel's loops that hold no other loop. A loop is what lies between a label and a later branch back to it.
pub fn innermost_loops(listing: &str, kernel: &str) -> Vec<Loop> {
    let section = format!(".text.{kernel},");
    let mut here = false;
    let mut opcodes: Vec<&str> = Vec::new();
    let mut labels: Vec<(&str, usize)> = Vec::new();
    let mut spans: Vec<(usize, usize)> = Vec::new();
    for line in listing.lines().map(str::trim) {
        if line.starts_with(".section\t") || line.starts_with(".section ") {
            here = line.contains(&section);
        } else if !here {
        } else if let Some(label) = line.strip_suffix(':') {
            labels.push((label, opcodes.len()));
        } else if let Some((opcode, target)) = instruction(line) {
            let back = labels.iter().find(|(label, _)| opcode.starts_with("BRA") && Some(*label) == target);
            spans.extend(back.map(|(_, start)| (*start, opcodes.len())));
            opcodes.push(opcode);
        }
    }
    let holds_another =
        |span: &(usize, usize)| spans.iter().any(|other| other != span && other.0 >= span.0 && other.1 <= span.1);
    let inner = spans.iter().filter(|span| !holds_another(span));
    inner
        .map(|(start, end)| {
            let mut found = Loop::default();
            opcodes[*start..=*end].iter().for_each(|opcode| found.add(opcode));
            found
        })
        .collect()
}

/// The opcode in a line such as "/*0120*/ @!P0 BRA `(.L_x_3) ;", and the label that it names.
fn instruction(line: &str) -> Option<(&str, Option<&str>)> {
    let (address, rest) = line.strip_prefix("/*")?.split_once("*/")?;
    if !address.chars().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let rest = rest.trim().trim_start_matches('{').trim();
    let rest = if rest.starts_with('@') { rest.split_once(' ')?.1.trim() } else { rest };
    let opcode = rest.split([' ', ';']).next().filter(|opcode| opcode.starts_with(|c: char| c.is_ascii_uppercase()))?;
    let target = rest.split_once("`(").and_then(|(_, label)| label.split_once(')')).map(|(label, _)| label);
    Some((opcode, target))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "
	.section	.text.other,\"ax\",@progbits
.L_x_9:
        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0010*/                   BRA `(.L_x_9) ;
	.section	.text.kernel,\"ax\",@progbits
	.sectioninfo	@\"SHI_REGISTERS=62\"
.text.kernel:
        /*0000*/                   S2R R0, SR_TID.X ;
.L_x_0:
        /*0010*/                   IADD3 R1, R1, 0x1, RZ ;
.L_x_1:
        /*0020*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0030*/              @P0  LDG.E.128 R8, desc[UR4][R2.64+0x10] ;
        /*0040*/                   LDG.E.128.CONSTANT R8, desc[UR4][R2.64+0x20] ;
        /*0050*/                   LDG.E.128 R8, desc[UR4][R2.64+0x30] ;
        /*0060*/                   LOP3.LUT R1, R1, R4, RZ, 0x3c, !PT ;
        /*0070*/                   IMAD R1, R1, R4, R5 ;
        /*0080*/                   IMAD.WIDE.U32 R2, R2, 0x1, R4 ;
        /*0090*/              @!P1 BRA `(.L_x_2) ;
        /*00a0*/                   BRA `(.L_x_1) ;
.L_x_2:
        /*00b0*/               @P0 BRA `(.L_x_0) ;
        /*00c0*/                   EXIT ;
.L_x_3:
        /*00d0*/                   BRA `(.L_x_3);
";

    #[test]
    fn the_hot_loop_is_found_by_its_backward_branch() {
        let loops = innermost_loops(LISTING, "kernel");
        assert_eq!(loops.len(), 2, "the one that reads, and the trap behind the end: {loops:?}");
        let hot = hot(&loops, Width::Sixteen);
        let wanted = Loop { alu: 1, imad: 1, wide: 1, memory: 4, other: 2, loads_of_16: 4, loads_of_8: 0 };
        assert_eq!(hot, Some(wanted));
        assert!(hot.is_some_and(|hot| (hot.per_64(hot.memory) - 4.0).abs() < 1e-9));
    }

    #[test]
    fn a_kernel_without_such_a_loop_has_none() {
        assert_eq!(hot(&innermost_loops(LISTING, "kernel"), Width::Eight), None);
        assert_eq!(hot(&innermost_loops(LISTING, "ker"), Width::Sixteen), None);
    }
}
