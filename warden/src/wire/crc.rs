//! CRC-32C (Castagnoli), by tables: agent and warden compile this, and the agent has no `unsafe` for the processor's instruction.
//!
//! Each byte of output, of inputs and of files passes here in the agent, some of them twice. One sum waits for the memory at each of its steps, so
//! long texts are cut into lanes whose sums are computed side by side and then put together.

/// CRC-32C of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c_append(0, bytes)
}

/// The CRC-32C of what `sum` stands for followed by `bytes`; start with 0.
pub fn crc32c_append(sum: u32, bytes: &[u8]) -> u32 {
    !update(!sum, bytes)
}

/// The polynomial, reflected.
const POLYNOMIAL: u32 = 0x82F6_3B78;
/// Bytes of a lane.
const LANE: usize = 1024;
const LANES: usize = 4;

fn update(mut state: u32, bytes: &[u8]) -> u32 {
    let (blocks, rest) = bytes.as_chunks::<{ LANE * LANES }>();
    for block in blocks {
        let (lanes, _) = block.as_chunks::<LANE>();
        let [a, b, c, d] = [words(&lanes[0]), words(&lanes[1]), words(&lanes[2]), words(&lanes[3])];
        let mut states = [state, 0, 0, 0];
        for (((a, b), c), d) in a.iter().zip(b).zip(c).zip(d) {
            states = [word(states[0], a), word(states[1], b), word(states[2], c), word(states[3], d)];
        }
        // The sum of one followed by another: the first one behind as many zeros as the other is long, and the other one's.
        state = states[1..].iter().fold(states[0], |before, lane| behind_a_lane(before) ^ lane);
    }
    let (words, rest) = rest.as_chunks::<8>();
    let state = words.iter().fold(state, word);
    rest.iter().fold(state, |state, byte| state >> 8 ^ TABLES[0][((state ^ u32::from(*byte)) & 0xff) as usize])
}

fn words(lane: &[u8; LANE]) -> &[[u8; 8]] {
    lane.as_chunks::<8>().0
}

/// Slicing by eight: table n advances a byte by n further bytes.
#[inline(always)]
fn word(state: u32, word: &[u8; 8]) -> u32 {
    let low = state ^ u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
    TABLES[7][(low & 0xff) as usize]
        ^ TABLES[6][(low >> 8 & 0xff) as usize]
        ^ TABLES[5][(low >> 16 & 0xff) as usize]
        ^ TABLES[4][(low >> 24) as usize]
        ^ TABLES[3][word[4] as usize]
        ^ TABLES[2][word[5] as usize]
        ^ TABLES[1][word[6] as usize]
        ^ TABLES[0][word[7] as usize]
}

/// What a state becomes behind [`LANE`] zeros.
fn behind_a_lane(state: u32) -> u32 {
    ZEROS[0][(state & 0xff) as usize]
        ^ ZEROS[1][(state >> 8 & 0xff) as usize]
        ^ ZEROS[2][(state >> 16 & 0xff) as usize]
        ^ ZEROS[3][(state >> 24) as usize]
}

static TABLES: [[u32; 256]; 8] = {
    let mut tables = [[0u32; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut sum = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            sum = if sum & 1 == 1 { sum >> 1 ^ POLYNOMIAL } else { sum >> 1 };
            bit += 1;
        }
        tables[0][byte] = sum;
        byte += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[table - 1][byte];
            tables[table][byte] = before >> 8 ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        table += 1;
    }
    tables
};

/// By byte of the state: what it becomes behind [`LANE`] zeros.
static ZEROS: [[u32; 256]; 4] = {
    // Each step is linear in the state: so is what one zero does to each bit, and doing it twice doubles the zeros.
    let mut bits = [0u32; 32];
    let mut bit = 0;
    while bit < 32 {
        let state = 1u32 << bit;
        bits[bit] = state >> 8 ^ TABLES[0][(state & 0xff) as usize];
        bit += 1;
    }
    let mut zeros = 1;
    while zeros < LANE {
        let mut twice = [0u32; 32];
        let mut bit = 0;
        while bit < 32 {
            twice[bit] = of_bits(&bits, bits[bit]);
            bit += 1;
        }
        bits = twice;
        zeros *= 2;
    }
    assert!(zeros == LANE, "a lane is a power of two");
    let mut tables = [[0u32; 256]; 4];
    let mut at = 0;
    while at < 4 * 256 {
        tables[at / 256][at % 256] = of_bits(&bits, ((at % 256) as u32) << (8 * (at / 256)));
        at += 1;
    }
    tables
};

const fn of_bits(bits: &[u32; 32], state: u32) -> u32 {
    let (mut all, mut bit) = (0, 0);
    while bit < 32 {
        if state >> bit & 1 == 1 {
            all ^= bits[bit];
        }
        bit += 1;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bit by bit, as the standard has it.
    fn plain(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |state, byte| {
            (0..8).fold(
                state ^ u32::from(*byte),
                |state, _| {
                    if state & 1 == 1 { state >> 1 ^ POLYNOMIAL } else { state >> 1 }
                },
            )
        })
    }

    #[test]
    fn sums_are_those_of_the_standard_at_every_length_and_in_any_parts() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        let bytes: Vec<u8> =
            (0..3 * LANE * LANES + 77).map(|at| ((at as u32).wrapping_mul(2_654_435_761) >> 21) as u8).collect();
        let block = LANE * LANES;
        for length in [0, 1, 7, 8, 9, LANE, block - 1, block, block + 1, 2 * block + 13, bytes.len()] {
            let part = &bytes[..length];
            assert_eq!(crc32c(part), plain(part), "{length} bytes");
            for at in [0, length / 3, length / 2, length] {
                let (first, rest) = part.split_at(at);
                assert_eq!(crc32c_append(crc32c(first), rest), plain(part), "{length} bytes, cut at {at}");
            }
        }
    }
}
