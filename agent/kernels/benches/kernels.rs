//! `cargo bench -p kernels`: products by format and instruction set, in alternation with a loop that only reads, so that
//! ratios hold on a machine that does other things too.
//!
//! One token: bytes of weights per second, as a share of what the loop reads. 64 tokens: multiply-adds per second.
//! Of each, the median of the rounds, and the quartiles.

use std::hint::black_box;
use std::time::Instant;

use kernels::{
    Activations, Avx2, Avx512, Format, Isa, Matrix, Pool, Product, SCALED, Scalar, Scales, matmul,
    pack, rms_norm, softmax, swiglu,
};

const COLUMNS: usize = 2048;
/// More than a second cache holds, by far.
const STREAM_BYTES: usize = 192 << 20;
const CACHED_BYTES: usize = 1 << 20;
const TOKENS: usize = 64;
/// Rows of the product with many tokens.
const ROWS: usize = 2048;
const ROUNDS: usize = 9;

fn main() {
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    let mut isas = vec![Isa::Scalar(Scalar)];
    isas.extend(Avx2::detect().map(Isa::Avx2));
    isas.extend(Avx512::detect().map(Isa::Avx512));
    let fastest = isas.len() - 1;
    elements();
    println!("one token: share of the read bandwidth; many: Gmac/s ({TOKENS} tokens)");
    for format in Format::all().filter(|format| format!("{format:?}").contains(&filter)) {
        one_token(format, &isas[1.min(fastest)..]);
        in_cache(format, &isas[1.min(fastest)..]);
        many_tokens(format, &isas[1.min(fastest)..]);
    }
}

fn weights(format: Format, rows: usize) -> Vec<u8> {
    let row_bytes = format.row_bytes(COLUMNS).unwrap_or(0);
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Numbers read from these bytes are neither infinite nor subnormal, whatever the format.
        (state >> 24 & 0x3b | 0x20).to_le_bytes()[0]
    };
    let tile: Vec<u8> = (0..row_bytes * 16).map(|_| next()).collect();
    tile.into_iter().cycle().take(row_bytes * rows).collect()
}

/// Of as many rows, if `format` has any: one.
fn scales(format: Format, rows: usize) -> Vec<u8> {
    let blocks = rows.div_ceil(SCALED) * COLUMNS.div_ceil(SCALED);
    if format == Format::F8 { 1_f32.to_le_bytes().repeat(blocks) } else { Vec::new() }
}

fn one_token(format: Format, isas: &[Isa]) {
    let rows = STREAM_BYTES / format.row_bytes(COLUMNS).unwrap_or(1) / 16 * 16;
    let plain = weights(format, rows);
    let scales = scales(format, rows);
    let scales = Scales { bytes: &scales, above: 0 };
    let mut packed = plain.clone();
    let pack_s = seconds(|| pack(format, rows, COLUMNS, &mut packed));
    let x = activations(1);
    let mut pool = one_thread();
    let mut out = vec![0.0; rows];
    let (mut reads, mut times) = (Vec::new(), vec![Vec::new(); isas.len() * 2]);
    for _ in 0..ROUNDS {
        reads.push(seconds(|| read(&packed)));
        for (i, times) in times.iter_mut().enumerate() {
            let bytes = if i % 2 == 0 { &packed } else { &plain };
            let matrix =
                Matrix { format, packed: i % 2 == 0, rows, columns: COLUMNS, bytes, scales };
            let isa = isas[i / 2];
            times.push(seconds(|| {
                matmul(isa, &mut pool, &x, vec![Product { matrix, out: &mut out }]);
            }));
        }
    }
    let gb = packed.len() as f64 / 1e9;
    let read_rate = spread(reads.iter().map(|s| gb / s).collect());
    println!("{format:?}: reads {read_rate} GB/s, packs {:.1} GB/s", gb / pack_s);
    for (i, times) in times.iter().enumerate() {
        let shares = reads.iter().zip(times).map(|(read, time)| read / time).collect();
        let kind = if i % 2 == 0 { "packed" } else { "rows" };
        println!("  1 token, {}, {kind}: {}", isas[i / 2].name(), spread(shares));
    }
}

/// What is not a product, in nanoseconds per number.
fn elements() {
    let values: Vec<f32> = (0..1 << 16).map(|i| (i % 97) as f32 / 9.0 - 5.0).collect();
    let (mut gate, mut out, mut x) = (values.clone(), values.clone(), Activations::default());
    let show = |name, work: &mut dyn FnMut()| {
        let times = (0..ROUNDS * 5).map(|_| seconds(&mut *work) * 1e9 / values.len() as f64);
        println!("{name}: {} ns", spread(times.collect()));
    };
    // Anew each time: what is multiplied again and again becomes subnormal, and slow.
    show("copy", &mut || gate.copy_from_slice(black_box(&values)));
    show("swiglu after it", &mut || {
        gate.copy_from_slice(&values);
        swiglu(&mut gate, &values);
    });
    show("quantise", &mut || x.set(&values, COLUMNS));
    show("rms_norm", &mut || rms_norm(&values, &values, 1e-5, &mut out));
    show("softmax after a copy", &mut || {
        out.copy_from_slice(&values);
        softmax(&mut out);
    });
}

/// Without waiting for memory: what the kernel itself needs.
fn in_cache(format: Format, isas: &[Isa]) {
    let rows = CACHED_BYTES / format.row_bytes(COLUMNS).unwrap_or(1) / 16 * 16;
    let mut bytes = weights(format, rows);
    pack(format, rows, COLUMNS, &mut bytes);
    let scales = scales(format, rows);
    let scales = Scales { bytes: &scales, above: 0 };
    let matrix = Matrix { format, packed: true, rows, columns: COLUMNS, bytes: &bytes, scales };
    let (x, mut pool, mut out) = (activations(1), one_thread(), vec![0.0; rows]);
    for isa in isas {
        let times = (0..ROUNDS * 20).map(|_| {
            seconds(|| matmul(*isa, &mut pool, &x, vec![Product { matrix, out: &mut out }]))
        });
        let gb = bytes.len() as f64 / 1e9;
        let rates = times.map(|time| gb / time).collect();
        println!("  1 token, {}, in the second cache: {} GB/s", isa.name(), spread(rates));
    }
}

fn many_tokens(format: Format, isas: &[Isa]) {
    let mut bytes = weights(format, ROWS);
    pack(format, ROWS, COLUMNS, &mut bytes);
    let scales = scales(format, ROWS);
    let (rows, scales) = (ROWS, Scales { bytes: &scales, above: 0 });
    let matrix = Matrix { format, packed: true, rows, columns: COLUMNS, bytes: &bytes, scales };
    let mut pool = one_thread();
    for tokens in [2, 4, 8, 16, TOKENS] {
        let x = activations(tokens);
        let mut out = vec![0.0; ROWS * tokens];
        let mut times = vec![Vec::new(); isas.len()];
        for _ in 0..ROUNDS {
            for (isa, times) in isas.iter().zip(&mut times) {
                times.push(seconds(|| {
                    matmul(*isa, &mut pool, &x, vec![Product { matrix, out: &mut out }]);
                }));
            }
        }
        for (isa, times) in isas.iter().zip(&times) {
            let work = (ROWS * COLUMNS * tokens) as f64 / 1e9;
            let rates = times.iter().map(|time| work / time).collect();
            println!("  {tokens} tokens, {}: {}", isa.name(), spread(rates));
        }
    }
}

fn activations(tokens: usize) -> Activations {
    let values: Vec<f32> =
        (0..COLUMNS * tokens).map(|i| (i * 7919 % 1009) as f32 / 500.0 - 1.0).collect();
    let mut x = Activations::default();
    x.set(&values, COLUMNS);
    x
}

fn one_thread() -> Pool {
    match Pool::new(1) {
        Ok(pool) => pool,
        Err(error) => panic!("a pool of the caller alone: {error}"),
    }
}

fn read(bytes: &[u8]) {
    let mut sums = [0_u64; 16];
    for chunk in bytes.as_chunks::<128>().0 {
        for (sum, word) in sums.iter_mut().zip(chunk.as_chunks::<8>().0) {
            *sum = sum.wrapping_add(u64::from_le_bytes(*word));
        }
    }
    black_box(sums);
}

/// Seconds that this thread was on a processor, so that what else runs there counts little.
fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    let before = on_processor_ns();
    work();
    let elapsed = start.elapsed().as_secs_f64();
    match before.zip(on_processor_ns()) {
        // Shorter times are too coarse in the kernel's books.
        Some((from, to)) if elapsed > 0.02 => (to - from) as f64 / 1e9,
        _ => elapsed,
    }
}

/// proc(5), `/proc/pid/schedstat`: nanoseconds on a processor come first.
fn on_processor_ns() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

fn spread(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    let at = |quarter: usize| values[(values.len() - 1) * quarter / 4];
    format!("{:.2} ({:.2}..{:.2}, best {:.2})", at(2), at(1), at(3), at(4))
}
