// Results of elements of 1, 2, 4 or 8 bytes, made word by word: smaller elements lie in parts of a word, larger ones in two.

// Elements that a word of the result has, and the first of them.
uint elements_of_word(uint size) { return size < 4u ? 4u / size : 1u; }
uint first_of_word(uint w, uint size) { return size == 8u ? w >> 1 : w * elements_of_word(size); }
uint words_of(uint count, uint size) { return size == 8u ? 2u * count : (count + elements_of_word(size) - 1u) / elements_of_word(size); }

// Where the part of element `i` that belongs into word `w` lies among the words of a buffer.
uint word_at(uint i, uint w, uint size) { return size == 8u ? 2u * i + (w & 1u) : size == 4u ? i : size == 2u ? i >> 1 : i >> 2; }

// The part of a word that element `i` takes, moved down; and up to the place of the result's element `e` of a word.
uint part_of(uint word, uint i, uint size) {
  if (size >= 4u) return word;
  return size == 2u ? bitfieldExtract(word, int(i & 1u) * 16, 16) : bitfieldExtract(word, int(i & 3u) * 8, 8);
}
uint placed(uint part, uint e, uint size) { return size >= 4u ? part : part << (e * size * 8u); }
