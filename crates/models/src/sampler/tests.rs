use super::*;

/// Keeps everything, at temperature 1.
fn neutral() -> SamplerOptions {
    SamplerOptions { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..SamplerOptions::default() }
}

fn distribution(options: SamplerOptions, logits: &[f32], history: &[u32]) -> Vec<(u32, f32)> {
    Sampler::new(options).unwrap().distribution(logits, history).unwrap()
}

fn assert_near(found: &[(u32, f32)], expected: &[(u32, f32)]) {
    let near = |(a, b): (&(u32, f32), &(u32, f32))| a.0 == b.0 && (a.1 - b.1).abs() < 1e-6;
    assert!(found.len() == expected.len() && found.iter().zip(expected).all(near), "{found:?} {expected:?}");
}

#[test]
fn greedy_takes_the_first_of_the_highest() {
    let mut sampler = Sampler::new(SamplerOptions::greedy()).unwrap();
    let mut sample = |logits: &[f32]| sampler.sample(logits, &[]);
    assert_eq!(sample(&[1.0, 5.0, 5.0]), Ok(1));
    assert_eq!(sample(&[f32::NAN, -3.0, f32::NAN, -2.0]), Ok(3));
    assert_eq!(sample(&[0.0, f32::INFINITY, f32::INFINITY]), Ok(1));
    let mut long = vec![-1.0; 100];
    (long[77], long[98]) = (4.0, 4.0);
    assert_eq!(sample(&long), Ok(77));
    long[99] = 4.5;
    assert_eq!(sample(&long), Ok(99));
}

#[test]
fn no_candidate_is_an_error_and_not_a_token() {
    for options in [SamplerOptions::greedy(), SamplerOptions::default(), neutral()] {
        let mut sampler = Sampler::new(options).unwrap();
        for logits in [&[][..], &[f32::NAN; 20], &[f32::NEG_INFINITY; 3]] {
            let error = SamplerError::NoCandidate { logits: logits.len() };
            assert_eq!(sampler.sample(logits, &[]), Err(error));
        }
    }
}

#[test]
fn without_rules_the_distribution_is_softmax() {
    let logits = [0.0, 1.0, -1.0].map(|x: f32| x * std::f32::consts::LN_2);
    assert_near(&distribution(neutral(), &logits, &[]), &[(0, 2.0 / 7.0), (1, 4.0 / 7.0), (2, 1.0 / 7.0)]);
    let half = SamplerOptions { temperature: 0.5, ..neutral() };
    assert_near(&distribution(half, &logits, &[]), &[(0, 4.0 / 21.0), (1, 16.0 / 21.0), (2, 1.0 / 21.0)]);
}

#[test]
fn rules_apply_in_their_order() {
    // Probabilities 0.4, 0.3, 0.2, 0.1. Top-p of 0.7 would keep two of four; of the best two's
    // 4/7 and 3/7, it keeps both, and min-p of 0.8 drops the second.
    let logits = [0.4f32, 0.3, 0.2, 0.1].map(f32::ln);
    let options = SamplerOptions { top_k: 2, top_p: 0.5, ..neutral() };
    assert_near(&distribution(options, &logits, &[]), &[(0, 1.0)]);
    let options = SamplerOptions { top_k: 2, top_p: 0.6, ..neutral() };
    assert_near(&distribution(options, &logits, &[]), &[(0, 4.0 / 7.0), (1, 3.0 / 7.0)]);
    let options = SamplerOptions { top_k: 2, top_p: 0.6, min_p: 0.8, ..neutral() };
    assert_near(&distribution(options, &logits, &[]), &[(0, 1.0)]);
    // Temperature comes after the rules: it changes what remains, not how much remains.
    let options = SamplerOptions { top_p: 0.6, temperature: 1e6, ..neutral() };
    assert_near(&distribution(options, &logits, &[]), &[(0, 0.5), (1, 0.5)]);
}

#[test]
fn penalties_count_recent_tokens() {
    let logits = [2.0, -2.0, 1.0];
    let penalized = |options: SamplerOptions, history: &[u32]| {
        let mut sampler = Sampler::new(options).unwrap();
        sampler.penalize(&logits, history).to_vec()
    };
    let repetition = SamplerOptions { repetition_penalty: 2.0, ..neutral() };
    assert_eq!(penalized(repetition.clone(), &[0, 1, 1]), [1.0, -4.0, 1.0]);
    let last = SamplerOptions { penalty_last_n: 1, ..repetition.clone() };
    assert_eq!(penalized(last, &[0, 1, 1]), [2.0, -4.0, 1.0]);
    let none = SamplerOptions { penalty_last_n: 0, ..repetition };
    assert_eq!(penalized(none, &[0, 1, 1]), logits);
    let presence = SamplerOptions { presence_penalty: 0.5, ..neutral() };
    assert_eq!(penalized(presence, &[1, 1, 999]), [2.0, -2.5, 1.0]);
    let frequency = SamplerOptions { frequency_penalty: 0.5, penalty_last_n: usize::MAX, ..neutral() };
    assert_eq!(penalized(frequency, &[1, 2, 1]), [2.0, -3.0, 0.5]);
}

#[test]
fn greedy_choice_heeds_penalties() {
    let options = SamplerOptions { frequency_penalty: 1.0, ..SamplerOptions::greedy() };
    let mut sampler = Sampler::new(options).unwrap();
    assert_eq!(sampler.sample(&[2.0, 1.5], &[]), Ok(0));
    assert_eq!(sampler.sample(&[2.0, 1.5], &[0]), Ok(1));
    assert_eq!(sampler.sample(&[2.0, 1.5], &[0, 1]), Ok(0));
}

#[test]
fn a_seed_gives_the_same_tokens_for_ever() {
    let logits: Vec<f32> = (0..50u8).map(|n| f32::from(n % 7)).collect();
    let draw = |seed, options: SamplerOptions| -> Vec<u32> {
        let mut sampler = Sampler::new(SamplerOptions { seed, ..options }).unwrap();
        (0..12).map(|_| sampler.sample(&logits, &[]).unwrap()).collect()
    };
    assert_eq!(draw(42, neutral()), DRAWN);
    assert_eq!(draw(42, neutral()), draw(42, neutral()));
    assert_ne!(draw(43, neutral()), DRAWN);
}

/// What seed 42 gives; computed by another program, too.
const DRAWN: [u32; 12] = [41, 19, 48, 34, 41, 32, 6, 33, 13, 48, 27, 41];

#[test]
fn draws_have_the_frequencies_of_the_distribution() {
    let logits = [0.5f32, 0.3, 0.2].map(f32::ln);
    let mut sampler = Sampler::new(neutral()).unwrap();
    let mut counts = [0u32; 3];
    for _ in 0..100_000 {
        counts[sampler.sample(&logits, &[]).unwrap() as usize] += 1;
    }
    for (count, expected) in counts.iter().zip([50_000, 30_000, 20_000]) {
        assert!(count.abs_diff(expected) < 600, "{counts:?}");
    }
}

#[test]
fn impossible_tokens_are_never_drawn() {
    let mut logits = vec![f32::NEG_INFINITY; 1000];
    logits[500] = -1e30;
    logits[7] = f32::NAN;
    let mut sampler = Sampler::new(neutral()).unwrap();
    assert!((0..100).all(|_| sampler.sample(&logits, &[]) == Ok(500)));
}

#[test]
fn options_without_meaning_are_refused_by_name() {
    let error = |options: SamplerOptions| Sampler::new(options).unwrap_err().to_string();
    let default = SamplerOptions::default;
    assert_eq!(
        error(SamplerOptions { temperature: -1.0, ..default() }),
        "temperature is -1, but must be a number from 0"
    );
    assert_eq!(
        error(SamplerOptions { temperature: f32::NAN, ..default() }),
        "temperature is NaN, but must be a number from 0"
    );
    assert_eq!(error(SamplerOptions { top_p: 1.5, ..default() }), "top-p is 1.5, but must be a number from 0 to 1");
    assert_eq!(error(SamplerOptions { min_p: -0.1, ..default() }), "min-p is -0.1, but must be a number from 0 to 1");
    assert!(error(SamplerOptions { typical_p: 2.0, ..default() }).starts_with("typical-p is 2"));
    assert_eq!(
        error(SamplerOptions { repetition_penalty: 0.0, ..default() }),
        "repetition penalty is 0, but must be a number above 0"
    );
    assert!(error(SamplerOptions { presence_penalty: f32::INFINITY, ..default() }).contains("presence"));
    assert!(error(SamplerOptions { frequency_penalty: f32::NAN, ..default() }).contains("frequency"));
}
