// What the levels of confidence in keyless answers mean, in words.

const percent = (share) => `${(100 * share).toFixed(1)} %`;

/**
 * @param {{images: number, accuracy: number, low: number, high: number}[]} levels from the least sure, as the server
 *   states them; none where the box's confidence is not honest.
 * @returns {string} a few sentences; "" for none.
 */
export function levelsInWords(levels) {
  if (!levels.length) return "";
  const seen = (level) =>
    `${percent(level.accuracy)} of ${level.images} were right (95 % interval ${percent(level.low)} to ${percent(level.high)})`;
  if (levels.length === 1) {
    return `Without a key every answer is given with one honest confidence. On held-out images ${seen(levels[0])}.`;
  }
  const parts = [...levels].reverse().map((level, number) => {
    const which = number === 0 ? "surest" : number === levels.length - 1 ? "least sure" : "next";
    return `of the ${which} answers, ${seen(level)}`;
  });
  return (
    `Without a key an answer says its class and one of ${levels.length} levels of confidence; all else is decoys. ` +
    `On held-out images: ${parts.join("; ")}.`
  );
}
