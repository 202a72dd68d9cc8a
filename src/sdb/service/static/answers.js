// What an answer says, as far as its owner gives it away: logits, probabilities, the best few, or a label.

/**
 * An answer from the protocol's tensors.
 *
 * @returns {{policy: string, label: number, scores: number[] | null, known: Map<number, number>}}
 *   scores: logits up to a constant, where all classes are given; known: the probabilities that are given, by class.
 */
export function readAnswer(tensors) {
  if (tensors.labels) return { policy: "labels", label: tensors.labels[0], scores: null, known: new Map() };
  if (tensors.top_k) {
    const known = new Map(tensors.top_k.map((index, i) => [index, tensors.top_k_probabilities[i]]));
    return { policy: "top_k", label: tensors.top_k[0], scores: null, known };
  }
  const policy = tensors.logits ? "logits" : "probabilities";
  const scores = tensors.logits ?? tensors.probabilities.map(Math.log);
  return { policy, label: scores.indexOf(Math.max(...scores)), scores, known: new Map() };
}

/** Probabilities by class at a temperature; what is not given away is missing. Without scores there is only T = 1. */
export function chances({ scores, known }, temperature) {
  if (scores === null) return known;
  const highest = Math.max(...scores);
  const powers = scores.map((score) => Math.exp((score - highest) / temperature));
  const total = powers.reduce((sum, power) => sum + power, 0);
  return new Map(powers.map((power, index) => [index, power / total]));
}

/** Entropy in bits, or null where not all classes are given. */
export function entropy(probabilities, classes) {
  if (probabilities.size < classes) return null;
  let bits = 0;
  for (const chance of probabilities.values()) if (chance > 0) bits -= chance * Math.log2(chance);
  return bits;
}

/** Kullback-Leibler divergence of two answers in bits, or null where not all classes are given. */
export function divergence(from, to, classes) {
  if (from.size < classes || to.size < classes) return null;
  let bits = 0;
  for (const [index, chance] of from) if (chance > 0) bits += chance * Math.log2(chance / to.get(index));
  return Math.max(0, bits);
}

/** How spread an answer is, for people. */
export function spreadInWords(probabilities, classes, policy) {
  const bits = entropy(probabilities, classes);
  if (policy === "labels") return "The label and nothing else: there is nothing to spread.";
  if (bits === null) return `The best ${probabilities.size} of ${classes} classes, at temperature 1; no more is given away.`;
  const even = 2 ** bits;
  if (even < 1.05) return `${bits.toFixed(2)} bits: one class takes all, little more than the label.`;
  return `${bits.toFixed(2)} bits: as spread as an even choice among ${even.toFixed(1)} of ${classes} classes.`;
}
