from .batches import Batch as Batch, Batches as Batches
from .boundaries import Part as Part, nothing as nothing, parts_of as parts_of
from .check import overfit_problem as overfit_problem, row_problems as row_problems
from .shards.index import (
    INDEX as INDEX,
    PLACE as PLACE,
    Shard as Shard,
    ShardIndex as ShardIndex,
)
from .shards.plan import ShardPlan as ShardPlan
from .shards.workers import WorkerDiedError as WorkerDiedError
from .shards.write import Tokenized as Tokenized, tokenize_files as tokenize_files
from .source import MatrixRows as MatrixRows, Rows as Rows, Source as Source, as_source as as_source
from .text.choices import Choices as Choices, Question as Question
from .text.conversations import ROLES as ROLES, Turn as Turn, turns_of as turns_of
from .text.documents import JsonlReader as JsonlReader, LineEnds as LineEnds, text_of as text_of
from .text.files import find as find
from .text.learned import learned_tokens as learned_tokens
from .text.rows import TokenRows as TokenRows
from .text.shown import rows_of_jsonl as rows_of_jsonl
from .text.whole import (
    WholeData as WholeData,
    digests_of as digests_of,
    reads_whole as reads_whole,
    whole_data as whole_data,
)
from .vocabulary.base import (
    PAD_ID as PAD_ID,
    SOS_ID as SOS_ID,
    SPECIAL_TOKENS as SPECIAL_TOKENS,
    SURROGATE as SURROGATE,
    Bytes as Bytes,
    Characters as Characters,
    UnknownCharacterError as UnknownCharacterError,
    Vocabulary as Vocabulary,
    dtype_for as dtype_for,
)
from .vocabulary.bpe import BytePairSize as BytePairSize
from .vocabulary.choice import (
    VocabularyName as VocabularyName,
    extending as extending,
    read_vocabulary_file as read_vocabulary_file,
    vocabulary_from as vocabulary_from,
    vocabulary_of as vocabulary_of,
)
from .vocabulary.published import (
    VocabularyFileError as VocabularyFileError,
    read_published_vocabulary as read_published_vocabulary,
)
