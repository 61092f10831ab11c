//! Changes of inputs by chance, for runs without libFuzzer: the same for the same seed.

use ebb_tests::model::Random;

/// An input made of those that are there.
pub fn mutated(random: &mut Random, inputs: &[Vec<u8>], longest: usize) -> Vec<u8> {
    let mut input = pick(random, inputs).to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(input.len() as u64 + 1) as usize;
        let to = at + random.below((input.len() - at) as u64 + 1) as usize;
        match random.below(8) {
            0 => change(&mut input, at, |byte| byte ^ 1 << random.below(8)),
            1 => change(&mut input, at, |byte| byte.wrapping_add(random.below(9) as u8).wrapping_sub(4)),
            2 => change(&mut input, at, |_| random.below(256) as u8),
            3 => change(&mut input, at, |_| [0, 1, 6, 17, 127, 128, 255, b'"'][random.below(8) as usize]),
            4 => drop(input.drain(at..to.min(at + 32))),
            5 => {
                let again = input[at..to.min(at + 256)].to_vec();
                input.splice(at..at, again);
            }
            // The rest of another one, or a piece of it.
            6 => {
                let other = pick(random, inputs);
                input.truncate(at);
                input.extend(&other[random.below(other.len() as u64 + 1) as usize..]);
            }
            _ => {
                let other = pick(random, inputs);
                let from = random.below(other.len() as u64 + 1) as usize;
                let piece = other[from..].iter().copied().take(random.below(64) as usize).collect::<Vec<_>>();
                input.splice(at..at, piece);
            }
        }
    }
    input.truncate(longest);
    input
}

fn pick<'a>(random: &mut Random, inputs: &'a [Vec<u8>]) -> &'a [u8] {
    if inputs.is_empty() { &[] } else { &inputs[random.below(inputs.len() as u64) as usize] }
}

fn change(input: &mut [u8], at: usize, to: impl FnOnce(u8) -> u8) {
    if let Some(byte) = input.get_mut(at) {
        *byte = to(*byte);
    }
}
