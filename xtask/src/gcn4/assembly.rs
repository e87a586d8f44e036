//! What a main loop is made of, read from the driver's assembly.

/// How many instructions of each kind a piece of code has, and what they cost one wave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mix {
    /// All instructions.
    pub(super) total: u32,
    /// `v_mac_f32`, `v_mad_f32`, `v_fma_f32`: the work itself.
    pub(super) mac: u32,
    /// Vector conversions.
    pub(super) cvt: u32,
    /// Other vector instructions.
    pub(super) valu: u32,
    /// Scalar instructions that neither load nor wait.
    pub(super) salu: u32,
    /// Scalar loads.
    pub(super) smem: u32,
    /// Loads and stores of vectors.
    pub(super) vmem: u32,
    /// Shared memory, and what is done by its unit.
    pub(super) lds: u32,
    /// Waits for memory.
    pub(super) wait: u32,
    /// Clocks of a SIMD's vector unit for one wave.
    pub(super) vector_clocks: u32,
    /// Clocks of the compute unit's shared memory for one wave.
    pub(super) lds_clocks: u32,
}

impl Mix {
    /// All instructions of the vector unit.
    pub(super) fn vector(&self) -> u32 {
        self.mac + self.cvt + self.valu
    }

    /// The share of `mac` in all instructions.
    pub(super) fn mac_share(&self) -> f64 {
        f64::from(self.mac) / f64::from(self.total.max(1))
    }

    /// How busy shared memory is while the vector units are busy all the time: four SIMDs share it.
    pub(super) fn lds_share(&self) -> f64 {
        4.0 * f64::from(self.lds_clocks) / f64::from(self.vector_clocks.max(1))
    }

    fn add(&mut self, instruction: &str) {
        self.total += 1;
        let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| instruction.starts_with(prefix));
        if instruction.starts_with("v_") {
            self.vector_clocks += vector_clocks(instruction);
            if starts(&["v_mac_f32", "v_mad_f32", "v_fma_f32"]) {
                self.mac += 1;
            } else if instruction.starts_with("v_cvt_") {
                self.cvt += 1;
            } else {
                self.valu += 1;
            }
        } else if instruction.starts_with("ds_") {
            self.lds += 1;
            self.lds_clocks += lds_clocks(instruction);
        } else if starts(&["buffer_", "global_", "flat_", "image_", "scratch_", "tbuffer_"]) {
            self.vmem += 1;
        } else if starts(&["s_load", "s_buffer_", "s_store", "s_dcache", "s_memtime"]) {
            self.smem += 1;
        } else if instruction.starts_with("s_waitcnt") {
            self.wait += 1;
        } else {
            self.salu += 1;
        }
    }
}

/// What a vector instruction takes of GCN4's vector unit for a wave of 64, in clocks.
fn vector_clocks(instruction: &str) -> u32 {
    const QUARTER_RATE: [&str; 13] = [
        "v_fma_f32",
        "v_mul_lo_",
        "v_mul_hi_u32",
        "v_mul_hi_i32",
        "v_mad_u64_u32",
        "v_mad_i64_i32",
        "v_rcp_",
        "v_rsq_",
        "v_sqrt_",
        "v_exp_",
        "v_log_",
        "v_sin_",
        "v_cos_",
    ];
    // The card has one sixteenth of the rate for double precision.
    if instruction.split('_').any(|part| part == "f64") {
        64
    } else if QUARTER_RATE.iter().any(|name| instruction.starts_with(name)) {
        16
    } else {
        4
    }
}

/// What an instruction takes of the compute unit's shared memory for a wave of 64, in clocks: 128 bytes a clock.
fn lds_clocks(instruction: &str) -> u32 {
    // Not for the memory itself: synchronization and counters.
    if ["ds_gws", "ds_nop", "ds_ordered"].iter().any(|prefix| instruction.starts_with(prefix)) {
        return 0;
    }
    let width = match instruction {
        _ if instruction.contains("_b128") => 8,
        _ if instruction.contains("_b96") => 6,
        _ if instruction.contains("64") && !instruction.contains("st64") => 4,
        _ if instruction.contains("st64_b64") => 4,
        _ => 2,
    };
    let twice = ["ds_read2", "ds_write2"].iter().any(|prefix| instruction.starts_with(prefix));
    if twice { 2 * width } else { width }
}

/// A loop of the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Loop {
    /// Everything in it, an inner loop's instructions once.
    pub(super) mix: Mix,
    /// How many loops are within it.
    pub(super) inner: usize,
}

/// One block: its label and its instructions.
struct Block<'a> {
    label: &'a str,
    instructions: Vec<(&'a str, &'a str)>,
}

fn blocks(assembly: &str) -> Vec<Block<'_>> {
    let mut blocks: Vec<Block<'_>> = Vec::new();
    for line in assembly.lines() {
        let code = line.split(';').next().unwrap_or_default().trim();
        let label = code.strip_suffix(':').filter(|label| is_label(label));
        if let Some(label) = label {
            blocks.push(Block { label, instructions: Vec::new() });
        } else if let (Some(block), false) = (blocks.last_mut(), code.is_empty()) {
            block.instructions.push(code.split_once(char::is_whitespace).unwrap_or((code, "")));
        }
    }
    blocks
}

fn is_label(text: &str) -> bool {
    text.strip_prefix("BB").is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The main loop: the one with the most instructions of its own, those of loops within it not counted. So the body of a
/// long loop with a short loop inside is found, and so is the inner loop where the outer one only counts rows.
pub(super) fn main_loop(assembly: &str) -> Option<Loop> {
    let blocks = blocks(assembly);
    // First and last block of every loop: a branch backwards closes it. Several branches to one head are one loop.
    let mut loops: Vec<(usize, usize)> = Vec::new();
    for (last, block) in blocks.iter().enumerate() {
        for (name, arguments) in &block.instructions {
            if !name.starts_with("s_branch") && !name.starts_with("s_cbranch") {
                continue;
            }
            let target = arguments.split(|c: char| c == ',' || c.is_whitespace()).find(|word| is_label(word));
            let head = target.and_then(|target| blocks[..=last].iter().position(|block| block.label == target));
            let Some(head) = head else { continue };
            match loops.iter_mut().find(|(first, _)| *first == head) {
                Some(known) => known.1 = last,
                None => loops.push((head, last)),
            }
        }
    }
    let within =
        |inner: &(usize, usize), outer: &(usize, usize)| inner != outer && outer.0 <= inner.0 && inner.1 <= outer.1;
    let own = |outer: &(usize, usize)| -> usize {
        let inner: Vec<&(usize, usize)> = loops.iter().filter(|inner| within(inner, outer)).collect();
        (outer.0..=outer.1)
            .filter(|index| !inner.iter().any(|(first, last)| (first..=last).contains(&index)))
            .map(|index| blocks[index].instructions.len())
            .sum()
    };
    // Of equals the first, so that the report does not depend on the order of a search.
    let main = loops.iter().rev().max_by_key(|candidate| own(candidate))?;
    let mut mix = Mix::default();
    for (name, _) in blocks[main.0..=main.1].iter().flat_map(|block| &block.instructions) {
        mix.add(name);
    }
    Some(Loop { mix, inner: loops.iter().filter(|inner| within(inner, main)).count() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "BB0:
\ts_lshr_b32 s0, s3, 5                                        ; 8f008503
\tv_mov_b32_e32 v0, 0                                         ; 7e000280
BB1:
\ts_cmp_ge_u32 s1, s7                                         ; bf090701
\ts_cbranch_scc1 BB5                                          ; bf850495
BB4:
\ts_load_dwordx4 s[12:15], s[10:11], 0x0                      ; c00a0305 00000000
\ts_buffer_load_dwordx4 s[16:19], s[12:15], s10               ; c028040a 0000000a
\tbuffer_load_dwordx4 v[20:23], v18, s[12:15], 0 offen        ; e05c1000 80031412
\ts_waitcnt vmcnt(0)                                          ; bf8c3f70
\tv_cvt_f32_ubyte1_e32 v19, v20                               ; 7e260af9
\tv_mac_f32_e32 v0, s12, v19                                  ; 2c00260c
\tv_mad_u32_u24 v3, v1, v2, v0                                ; 2c00260c
\tv_rcp_f32_e32 v4, v0                                        ; 2c00260c
\tds_read2_b64 v[4:7], v1 offset1:1                           ; d8ee0100
\tds_write_b32 v1, v0                                         ; d81a0000
\ts_branch BB1                                                ; bf82ffff
BB5:
\tbuffer_store_dword v0, v1, s[4:7], 0 offen                  ; e0701000
\ts_endpgm                                                    ; bf810000
";

    #[test]
    fn every_instruction_of_the_main_loop_is_counted_once() {
        let found = main_loop(SAMPLE).unwrap();
        let expected = Mix {
            total: 13,
            mac: 1,
            cvt: 1,
            valu: 2,
            salu: 3,
            smem: 2,
            vmem: 1,
            lds: 2,
            wait: 1,
            vector_clocks: 4 + 4 + 4 + 16,
            lds_clocks: 8 + 2,
        };
        assert_eq!(found, Loop { mix: expected, inner: 0 });
        assert_eq!(found.mix.vector(), 4);
        assert_eq!(found.mix.lds_share(), 40.0 / 28.0);
    }

    #[test]
    fn code_without_a_branch_backwards_has_no_main_loop() {
        assert_eq!(main_loop("BB0:\n\ts_cbranch_scc1 BB1\n\tv_mov_b32_e32 v0, 0\nBB1:\n\ts_endpgm\n"), None);
        assert_eq!(main_loop(""), None);
    }

    #[test]
    fn of_nested_loops_the_one_with_more_of_its_own_is_the_main_loop() {
        let nest = |outer: usize, inner: usize| {
            let body = |count: usize| "\tv_mac_f32_e32 v0, v1, v2\n".repeat(count);
            format!(
                "BB0:\n{}BB1:\n{}\ts_cbranch_scc0 BB1\nBB2:\n\ts_cbranch_scc0 BB0\nBB3:\n\ts_endpgm\n",
                body(outer),
                body(inner)
            )
        };
        let mac = |assembly: &str| main_loop(assembly).map(|found| (found.mix.mac, found.inner));
        assert_eq!(mac(&nest(3, 40)), Some((40, 0)));
        assert_eq!(mac(&nest(40, 3)), Some((43, 1)));
    }

    #[test]
    fn clocks_are_those_of_gcn4() {
        for (name, clocks) in [("v_mul_lo_u32", 16), ("v_exp_f32_e32", 16), ("v_mul_u32_u24_e32", 4), ("v_add_f64", 64)]
        {
            assert_eq!(vector_clocks(name), clocks, "{name}");
        }
        let lds = [
            ("ds_read_b32", 2),
            ("ds_read_b64", 4),
            ("ds_read_b128", 8),
            ("ds_write_b16", 2),
            ("ds_read2_b32", 4),
            ("ds_read2st64_b32", 4),
            ("ds_write2st64_b64", 8),
            ("ds_bpermute_b32", 2),
        ];
        for (name, clocks) in lds {
            assert_eq!(lds_clocks(name), clocks, "{name}");
        }
    }
}
