//! A random number generator that prints its seed, so that you can repeat a run (xorshift64*, Vigna 2016).

pub struct Random(u64);

impl Random {
    /// Takes the seed from the variable `seed_setting` of the environment, or from the clock, and prints it.
    pub fn new(test: &str, seed_setting: &str) -> (Self, u64) {
        let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
        let seed = setting(seed_setting, u64::from(nanos)).max(1);
        println!("{test}: {seed_setting}={seed}");
        (Self(seed), seed)
    }

    /// Uses this seed. The multiplication (from splitmix64) separates the sequences of neighbouring seeds.
    pub fn from_seed(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).max(1))
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % bound
    }
}

/// Returns a number from the environment.
pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |value| value.parse().expect(name))
}
