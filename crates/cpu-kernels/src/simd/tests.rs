use super::*;

/// Runs every operation on fixed inputs of 16 elements and collects what comes out.
struct Probe;

impl Kernel for Probe {
    type Output = (Vec<f32>, Vec<i32>);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let x: [f32; 16] = std::array::from_fn(|i| (i as f32 - 7.3) * 1.37);
        let y: [f32; 16] = std::array::from_fn(|i| 0.5 + i as f32 * 0.25);
        let bytes: [u8; 64] = std::array::from_fn(|i| (i * 37 + 11) as u8);
        let mut half =
            [0x3c00u16, 0xc000, 0x0001, 0x83ff, 0x7bff, 0x7c00, 0xfc00, 0x0400, 0x3555, 0, 0x8000, 1, 2, 3, 4, 5];
        half.iter_mut().for_each(|h| *h = h.to_le());
        let (mut f, mut i) = (Vec::new(), Vec::new());
        let (mut sum, mut max, mut isum, mut imax) = (0.0, f32::MIN, 0, i32::MIN);
        for at in (0..16).step_by(S::LANES) {
            let mut put_f = |v: S::F| {
                let mut lanes = [0.0; 16];
                // SAFETY: LANES <= 16.
                unsafe { s.f_store(lanes.as_mut_ptr(), v) };
                f.extend_from_slice(&lanes[..S::LANES]);
            };
            // SAFETY: the arrays have 16 lanes.
            let (a, b) = unsafe { (s.f_load(x[at..].as_ptr()), s.f_load(y[at..].as_ptr())) };
            for v in [s.f_add(a, b), s.f_sub(a, b), s.f_mul(a, b), s.f_div(a, b), s.f_max(a, b), s.f_min(a, b)] {
                put_f(v);
            }
            put_f(s.f_fma(s.f_splat(2.0), b, s.f_splat(0.5))); // exact, fused or not
            // SAFETY: 16 half-precision floats; one float; three floats.
            unsafe {
                put_f(s.f_load_f16(half.as_ptr().add(at).cast()));
                put_f(s.f_load_bf16(half.as_ptr().add(at).cast()));
                put_f(s.f_broadcast(x.as_ptr().add(3)));
                put_f(s.f_load_first(x.as_ptr(), 3.min(16 - at)));
                let mut some = [9.0f32; 16];
                s.f_store_first(some.as_mut_ptr(), a, 3);
                f.extend_from_slice(&some[..4]);
            }
            sum += s.f_reduce_add(b);
            max = s.f_reduce_max(a).max(max);
            let r = s.i_round(s.f_mul(a, s.f_splat(0.365)));
            isum += s.i_reduce_add(r);
            imax = s.i_reduce_max(r).max(imax);
            let mut put_i = |v: S::I| put_bits(s, v, &mut i);
            put_i(r);
            // SAFETY: 64 bytes.
            let (w, u, n) = unsafe {
                (
                    s.i_load(bytes.as_ptr().add(4 * at)),
                    s.i_load_u8(bytes.as_ptr().add(at)),
                    s.i_load_i8(bytes.as_ptr().add(at)),
                )
            };
            for v in [w, u, n, s.i_add(w, u), s.i_sub(n, w), s.i_max(n, r), s.i_and(w, n), s.i_or(w, u)] {
                put_i(v);
            }
            put_i(s.i_mul(w, n));
            let table = std::array::from_fn(|i| (37 * i + 11) as u8);
            put_i(s.i_lookup(&table, s.i_and(w, s.i_splat(0x0f0f_0f0f))));
            for v in [s.i_shl::<5>(w), s.i_shr::<7>(w), s.i_shr_by(w, 9), s.f_to_bits(a), s.i_splat(-3)] {
                put_i(v);
            }
            put_i(s.i_round(s.f_from_i(n)));
            put_i(s.f_to_bits(s.f_from_bits(w)));
            let (mut small, mut large, mut wide) = ([0u8; 16], [0u8; 16], [0i16; 16]);
            // SAFETY: 4 readable and 16 writable bytes.
            unsafe {
                put_i(s.i_broadcast(bytes.as_ptr().add(5)));
                s.i_store_i8(small.as_mut_ptr(), n);
                s.i_store_u8(large.as_mut_ptr(), u);
                s.i_store_i16(wide.as_mut_ptr().cast(), s.i_sub(s.i_add(n, n), u));
                let mut words = [0i32; 16];
                s.i_store(words.as_mut_ptr().cast(), w);
                put_i(s.i_load(words.as_ptr().cast()));
            }
            i.extend(small[..S::LANES].iter().map(|b| i32::from(*b)));
            i.extend(large[..S::LANES].iter().map(|b| i32::from(*b)));
            i.extend(wide[..S::LANES].iter().map(|b| i32::from(*b)));
        }
        f.extend([sum, max]);
        i.extend([isum, imax]);
        (f, i)
    }
}

#[inline(always)]
fn put_bits<S: Simd>(s: S, v: S::I, out: &mut Vec<i32>) {
    let mut lanes = [0.0f32; 16];
    // SAFETY: LANES <= 16.
    unsafe { s.f_store(lanes.as_mut_ptr(), s.f_from_bits(v)) };
    out.extend(lanes[..S::LANES].iter().map(|v| v.to_bits().cast_signed()));
}

/// Puts a per-vector list (operation, lane) into an order that does not depend on the number of lanes.
fn by_operation<T: Copy>(v: &[T], lanes: usize, tail: usize, extra: usize) -> Vec<T> {
    let body = &v[..v.len() - tail];
    let per_step = body.len() / (16 / lanes);
    let mut out = Vec::new();
    let operations = (per_step - extra) / lanes;
    for op in 0..operations {
        for step in body.chunks(per_step) {
            out.extend_from_slice(&step[op * lanes..(op + 1) * lanes]);
        }
    }
    out.extend_from_slice(&v[v.len() - tail..]);
    out
}

#[test]
fn every_level_computes_the_same_as_plain_rust() {
    let lanes = |level: Level| match level.name() {
        "avx512" => 16,
        "avx2" => 8,
        _ => 4,
    };
    // The partial loads and stores depend on LANES and are checked by the kernels' own tests: only what is lane-wise
    // is compared here, that is all but the last 11th float operation and the 4 floats after it.
    let run = |level: Level| {
        let (f, i) = level.run(Probe);
        let l = lanes(level);
        let f: Vec<u32> = f.into_iter().map(f32::to_bits).collect();
        (by_operation(&f, l, 2, l + 4), by_operation(&i, l, 2, 0))
    };
    let expected = run(Level::SCALAR);
    for level in Level::available() {
        assert_eq!(run(level), expected, "{level}");
    }
}

/// `dot4` of sixteen rows with three columns.
struct Dot<'a, const BITS: u32>(&'a [u8; 256], &'a [[i8; 16]; 3]);

impl<const BITS: u32> Kernel for Dot<'_, BITS> {
    type Output = Vec<i32>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<i32> {
        let mut out = vec![0; 48];
        for lane in (0..16).step_by(S::LANES) {
            // SAFETY: 4 vectors of 16 lanes of 4 bytes.
            let w = std::array::from_fn(|j| unsafe { s.i_load(self.0.as_ptr().add(64 * j + 4 * lane)) });
            let mut acc = [s.i_splat(5); 3];
            let a = [self.1[0].as_ptr().cast(), self.1[1].as_ptr().cast(), self.1[2].as_ptr().cast()];
            // SAFETY: each column has 16 activations.
            unsafe { s.dot4::<BITS, 3>(&mut acc, w, a) };
            for c in 0..3 {
                let mut lanes = Vec::new();
                put_bits(s, acc[c], &mut lanes);
                out[16 * c + lane..][..S::LANES].copy_from_slice(&lanes);
            }
        }
        if !S::BYTES_ARE_CENTRED && BITS == 8 {
            for (c, a) in self.1.iter().enumerate() {
                let sum: i32 = a.iter().map(|a| i32::from(*a)).sum();
                out[16 * c..16 * c + 16].iter_mut().for_each(|v| *v -= 128 * sum);
            }
        }
        out
    }
}

fn dot_is_exact<const BITS: u32>() {
    // Extremes first: they are what overflows 16-bit intermediates.
    let top = ((1u32 << BITS) - 1) as u8;
    for seed in 0..20u32 {
        let byte = |i: usize| match seed {
            0 | 1 => top,
            2 => 0,
            _ => ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed * 977) >> 13) as u8 & top,
        };
        let w: [u8; 256] = std::array::from_fn(byte);
        let a: [[i8; 16]; 3] = std::array::from_fn(|c| {
            std::array::from_fn(|i| match seed {
                0 | 2 => 127,
                1 => -127,
                _ => ((((i + 16 * c) as u32 * 40_503 + seed * 7919) >> 5) as u8 as i8).max(-127),
            })
        });
        let offset = if BITS == 8 { 128 } else { 0 };
        let expected: Vec<i32> = (0..48)
            .map(|cl| {
                let (c, lane) = (cl / 16, cl % 16);
                let product = |k: usize| (i32::from(w[k / 4 * 64 + lane * 4 + k % 4]) - offset) * i32::from(a[c][k]);
                5 + (0..16).map(product).sum::<i32>()
            })
            .collect();
        for level in Level::available() {
            assert_eq!(level.run(Dot::<BITS>(&w, &a)), expected, "{level}, {BITS} bits, seed {seed}");
        }
    }
}

#[test]
fn dot_products_of_bytes_are_exact_at_the_extremes() {
    dot_is_exact::<4>();
    dot_is_exact::<5>();
    dot_is_exact::<6>();
    dot_is_exact::<8>();
}

/// `dot_bytes` of two vectors of weights with two columns.
struct DotBytes<'a>(&'a [u8; 128], &'a [[u8; 4]; 2]);

impl Kernel for DotBytes<'_> {
    type Output = Vec<i32>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<i32> {
        let mut out = vec![0; 64];
        for lane in (0..16).step_by(S::LANES) {
            // SAFETY: two vectors of 16 lanes of 4 bytes.
            let w = std::array::from_fn(|g| unsafe { s.i_load(self.0.as_ptr().add(64 * g + 4 * lane)) });
            let mut acc = [[s.i_splat(5); 2]; 2];
            // SAFETY: each column has 4 activations.
            unsafe { s.dot_bytes::<2, 2>(&mut acc, w, [self.1[0].as_ptr(), self.1[1].as_ptr()]) };
            for (i, acc) in acc.into_iter().flatten().enumerate() {
                let mut lanes = Vec::new();
                put_bits(s, acc, &mut lanes);
                out[16 * i + lane..][..S::LANES].copy_from_slice(&lanes);
            }
        }
        out
    }
}

#[test]
fn dot_products_of_signed_and_unsigned_bytes_are_exact_at_the_extremes() {
    for seed in 0..20u32 {
        let byte = |i: usize| match seed {
            0 => 0x80,
            1 => 0x7f,
            _ => ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed * 977) >> 13) as u8,
        };
        let w: [u8; 128] = std::array::from_fn(byte);
        let a: [[u8; 4]; 2] =
            std::array::from_fn(|c| std::array::from_fn(|i| if seed < 3 { 255 } else { byte(200 + 4 * c + i) }));
        let expected: Vec<i32> = (0..64)
            .map(|at| {
                let (c, g, lane) = (at / 32, at / 16 % 2, at % 16);
                let product = |i: usize| i32::from(w[64 * g + 4 * lane + i].cast_signed()) * i32::from(a[c][i]);
                5 + (0..4).map(product).sum::<i32>()
            })
            .collect();
        for level in Level::available() {
            assert_eq!(level.run(DotBytes(&w, &a)), expected, "{level}, seed {seed}");
        }
    }
}

#[test]
fn a_forced_level_is_the_best_one_until_released() {
    let widest = Level::best();
    Level::force(Some(Level::SCALAR));
    let forced = Level::best();
    Level::force(None);
    assert_eq!(forced, Level::SCALAR);
    assert_eq!(Level::best(), widest);
    assert_eq!(Level::from_name("scalar"), Some(Level::SCALAR));
    assert_eq!(Level::from_name("z80"), None);
}
