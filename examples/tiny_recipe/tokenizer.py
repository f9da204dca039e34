"""The embedded model's tokenizer: CLIP's byte-level BPE, trained on our own prompts and a list of English words.

Every byte is in the vocabulary, alone and at the end of a word, so that any text becomes tokens and none is unknown.
"""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

MAX_LENGTH = 77
VOCABULARY_SIZE = 1249
WORD_END = "</w>"
BOS, EOS = "<|startoftext|>", "<|endoftext|>"

# Common words, and the words of prompts for medical images that a user will fine-tune with.
ENGLISH_WORDS = """
a about above across after again all along also an and another any are area areas around as at away axis back band bar
base be because been before behind below beside best better between big black blob blue body border both bottom box
bright brown but by can center centre centred change circle circular clear close color colour contains corner could
cross curved cyan dark deep dense diamond different do does down each edge eight either elongated empty end every few
fifth find first five flat for found four from full further gray great green grey group half has have high hole
horizontal how human image images in inner inside into irregular is it its just kind large larger largest last layer
left less level light like line lines little located location long lot low lower magenta many mark matter medium middle
mid more most much multiple near next nine no none not number object objects of off on one only open or orange other
outer outside oval over overlapping pair part parts pattern picture piece pink place plain point points position
present purple quarter rectangle red region regions right
ring rings rough round row same scan scene second segment separate
set seven several shape shaped shapes shown side similar single six size slice small smaller smallest smooth so some
spot spots square star still straight structure such ten texture than that the their them then there these they thick
thin thing third this those three through to together top touching triangle triangular two type under up upper vertical
very view visible was way we well were what where which while white whole wide width will with within without yellow
abdomen abdominal abnormal adenoma airspace anatomical aorta apical atrium axial benign biopsy bladder blood boat bone
bowel brain breast cancer car cardiac cardiomegaly carcinoma cat cavity cerebellum cerebral chamber chest colon
colonoscopy consolidation coronal cortex cortical cyst device diabetic diastole disease dog dysplasia echocardiography
edema effusion endocardium endoscopy enlarged epicardium face fat female fluid foot fracture grey-matter growth hand
head heart hippocampus house hyperplastic infection intestine joint kidney lesion liver lung lungs lymph malignant
male man margin mass matter medical melanoma membrane microscopy moderate mole mucosa muscle myocardium nerve nevus
nodule normal nuclei nucleus opacity organ pancreas patch patient person pigmented pleural pneumonia pneumothorax polyp
polyps pulmonary quality rectum sagittal scar sessile shadow skin skull spine spleen stomach surface systole tissue
tool tree tumor tumour ulcer ultrasound valve ventricle ventricular vessel vessels wall water white-matter woman wound
x-ray years
""".split()


def build_tokenizer(prompts: Iterable[str]) -> CLIPTokenizer:
    """
    Trains the byte pair encoding and gives it CLIP's own pre-tokenization and special tokens.

    Args:
        prompts (`Iterable[str]`): the texts to learn merges from, beside `ENGLISH_WORDS`.

    Returns:
        [`~transformers.CLIPTokenizer`]: at most `VOCABULARY_SIZE` tokens; the end of text is the highest id, pads too.
    """
    trained = Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    trained.normalizer = normalizers.Lowercase()
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", behavior="removed"), pre_tokenizers.Punctuation(), _byte_level()]
    )
    byte_characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = byte_characters + [character + WORD_END for character in byte_characters]
    # Given as special tokens the letters have fixed ids; else equally frequent pairs merge in another order each time.
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - 2,
        end_of_word_suffix=WORD_END,
        special_tokens=letters,
        show_progress=False,
    )
    trained.train_from_iterator([*ENGLISH_WORDS, *prompts], trainer)
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    tokens = dict.fromkeys([*letters, *("".join(pair) for pair in merges), BOS, EOS])
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=merges,
        model_max_length=MAX_LENGTH,
    )


def _byte_level() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
