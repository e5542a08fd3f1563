"""What a person can type wrong: each is answered in a few lines that say what, where and what to do; exit code 2."""

import json
import pickle
from pathlib import Path

import pytest
import torch

from samout_train.cli.train import train as main
from samout_train.data import SPECIAL_TOKENS
from tests.support.marks import spread
from tests.support.messages import MESSAGES, assert_recorded

FILES = {
    "good.txt": "long enough to learn from " * 50,
    "texts/my text.txt": "a text",
    "empty.txt": "",
    "short.txt": "short text",
    "bad.txt": b"abc" * 500 + b"\xff" + b"abc" * 500,
    "notes.jsonl": '{"text": "one"}\n{"txt": "two"}\n',
    "talk.jsonl": json.dumps({"conversations": [{"role": "boss", "content": "do it"}]}) + "\n",
    "voc.pkl": b"\x80\x04cos\nsystem\n(S'touch owned'\ntR.",
    "whole.pkl": pickle.dumps([*SPECIAL_TOKENS, "a", "b"]),
    "mine/model/broken.yaml": "_target_: samout_train.models.samout.SamOut\n_partial_: true\n  hidden_size: 3\n",
    "mine/model/twice.yaml": "defaults:\n  - v8\nhidden_size: 12\nnum_layers: 1\nhidden_size: 24\n",
    "mine/model/tab.yaml": "_target_: samout_train.models.samout.SamOut\n\thidden_size: 3\n",
    "mine/model/names_v9.yaml": "defaults:\n  - v9\n",
    "mine/model/interpolates.yaml": "defaults:\n  - v8\nhidden_size: ${model.width}\n",
    "mine/model/latin.yaml": b"# caf\xe9\ndefaults:\n  - v8\n",
    "mine/model/raises.yaml": "_target_: raises.Model\n_partial_: true\n",
    "mine/model/no_vocabulary.yaml": "_target_: forgets.Model\n_partial_: true\nwidth: 3\n",
    "mine/model/number.yaml": "defaults:\n  - v8\n5: 6\n",
    "mine/model/circle.yaml": "defaults:\n  - circle\n",
    "mine/model/there.yaml": "defaults:\n  - back\n",
    "mine/model/back.yaml": "defaults:\n  - there\n",
    "mine/mixer/small_window.yaml": "defaults:\n  - window_attention\nwindow: 4\n",
    "bare.pkl": pickle.dumps(["a", "b"]),
    "fraction.pkl": pickle.dumps(["a", 1.5]),
    "cut.pkl": b"\x80\x04",
    "memo.pkl": b"\x80\x04]r\xff\xff\xff\x7f.",
    "broken.jsonl": '{"text": "one"}\n{"text"\n',
    "again.jsonl": '{"text": "one", "text": "two"}\n',
    "one.jsonl": '{"text": "one"}\n',
    "two.jsonl": '{"text": "one"}\n{"text": "two"}\n',
    "raises.py": "1 / 0\n",
    "forgets.py": "class Model:\n    def __init__(self, *, width: int, pad_id: int | None) -> None: ...\n",
}
TEXT = ["data=text", "data.path=good.txt", "data.seq_len=8"]
MINE = ["--config-dir", "mine"]
MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "unknown key": (["model.hiden_size=3"], ["model.hiden_size=3: no such key; did you mean model.hidden_size?"]),
    "unknown key with a plus": (["+model.hiden_size=3"], ["model.hiden_size=3: no such key", "model.hidden_size?"]),
    "unknown key with two": (["++trainer.max_step=3"], ["trainer.max_step=3: no such key", "trainer.max_steps?"]),
    "unknown key at the top": (["sed=1"], ["sed=1: no such key; did you mean seed?"]),
    "key of another option": (
        ["data.path=good.txt"],
        ["data.path=good.txt: no such key; it is one of data=choices, data=enwik8, data="],
    ),
    "unknown group": (["modle=v1"], ["modle=v1: no such key; did you mean model?"]),
    "unknown option": (["optimizer=adamm"], ["optimizer=adamm: no such option; did you mean optimizer=adam?"]),
    "option in capitals": (["schedule=COSINE"], ["did you mean schedule=cosine?"]),
    "option far from any": (["model=zzz"], ["model=zzz: no such option; there are counting, deltanet"]),
    "no option": (["model=null"], ["model=null: choose an option of model: counting, deltanet"]),
    "group that is chosen already": (["+data=text"], ["+data=text: data is chosen already: write data=text"]),
    "key to delete": (["~modle"], ["~modle: there is no such key to delete"]),
    "key deleted": (["~optimizer.lr"], ["optimizer.lr: is missing: set optimizer.lr=..."]),
    "text for a number": (["model.hidden_size=big"], ["model.hidden_size=big: must be a whole number, from 1"]),
    "fraction for a whole number": (["data.batch_size=1.5"], ["data.batch_size=1.5: must be a whole number"]),
    "truth for a number": (["seed=true"], ["seed=true: must be a whole number, from 0"]),
    "number for truth": (["checkpoint.keep_best=2"], ["checkpoint.keep_best=2: must be true or false"]),
    "null for a number": (["optimizer.lr=null"], ["optimizer.lr=null: must be a number, above 0"]),
    "number for a device": (
        ["device=0"],
        ["device=0: must be auto, cpu, cuda, cuda:N or mps; did you mean cuda:0?"],
    ),
    "null for a device": (["device=null"], ["device=null: must be auto, cpu, cuda, cuda:N or mps"]),
    "processor with a number": (["device=cpu:1"], ["device (cpu:1) must be auto, cpu, cuda", "write device=cpu"]),
    "number for a precision": (["precision=16"], ["precision=16: must be auto, fp32, bf16, fp16"]),
    "number for kernels": (["kernels=1"], ["kernels=1: must be auto, reference, fused"]),
    "whole number beyond 64 bits": (
        ["data.batch_size=1e30"],
        ["data.batch_size=1e+30: must be at most 9223372036854775807"],
    ),
    "seed beyond 64 bits": (["seed=1e30"], ["seed=1e+30: must be from 0 to 9223372036854775807"]),
    "fraction of a whole number": (["data.batch_size=8.0"], ["data.batch_size=8.0: must be", "write 8"]),
    "batch beyond memory": (
        ["data.batch_size=99999999999999999"],
        ["data.batch_size=99999999999999999: does not fit into memory: ", "bytes are needed, and there are"],
    ),
    "more ids than there is room for": (
        [*TEXT, "data.vocabulary=bpe", "data.vocab_size=100000000000"],
        ["data.vocab_size=100000000000: must be from 261 to 16777216"],
    ),
    "more layers than there is room for": ([f"model.num_layers={10**18}"], ["0: must be from 1 to 10000"]),
    "a share without end": (["model.ffn_share=1e300"], ["model.ffn_share=1e+300: must be from above 0 to 1024"]),
    "a size that no machine holds": (["model.ffn_size=9000000000000000000"], ["ffn_size=9000000000000000000: must be"]),
    "a model beyond memory": (
        ["model.hidden_size=6000000"],
        ["model.hidden_size=6000000, model.num_layers=6, model.ffn_share=1.0: the model does not fit into memory: "],
    ),
    "rows of a task beyond memory": (
        ["data=copy", "data.num_sequences=9000000000000000000"],
        ["data.num_sequences=9000000000000000000: does not fit into memory: "],
    ),
    "tests of a task beyond memory": (
        ["data=parity", "data.test_lengths=[99999999999]"],
        ["data.test_lengths=[99999999999]: does not fit into memory: "],
    ),
    "list too short": (
        ["optimizer.betas=[0.9]"],
        ["optimizer.betas=[0.9]: must be a list such as [0.9, 0.9] (2 numbers, each a number from 0 to below 1)"],
    ),
    "value for a part": (["model.mixer=3"], ["model.mixer=3: must be a node with _target_"]),
    "out of range": (["model.dropout=1.5"], ["model.dropout=1.5: must be from 0 to below 1"]),
    "negative rate": (["optimizer.lr=-1e-3"], ["optimizer.lr=-0.001: must be above 0"]),
    "not a choice": (["model.init=large"], ["model.init=large: must be published, small"]),
    "no value": (["trainer.max_steps"], ["trainer.max_steps: has no value: write trainer.max_steps=..."]),
    "empty value": (["data.seq_len="], ["data.seq_len=: must be a whole number, above 0"]),
    "unclosed bracket": (
        ["optimizer.betas=[0.9,"],
        ["optimizer.betas=[0.9,: cannot be read: its brackets do not match"],
    ),
    "two equals signs": (["model==v8"], ["model==v8: cannot be read: it has more than one =: write model=v8"]),
    "settings in one pair of quotes": (
        ["model=v8 data=text"],
        ["model=v8 data=text: is several settings in one pair of quotes: write each without: model=v8 data=text"],
    ),
    "path without quotes": (
        ["data=text", "data.path=texts/my", "text.txt"],
        ["text.txt: is a part of a path with a blank: write 'data.path=texts/my text.txt'"],
    ),
    "several values": (["model=v1,v8"], ["model=v1,v8: several values need -m, which makes a sweep"]),
    "sweep with an unknown option": (
        ["-m", "model=v1,v9"],
        ["model=v9: no such option; there are counting, deltanet"],
    ),
    "sweep with a wrong value": (["-m", "optimizer.lr=1e-3,-1"], ["optimizer.lr=-1: must be above 0"]),
    "sweep with run_dir": (["-m", "seed=1,2", "run_dir=here"], ["run_dir is not for sweeps", "hydra.sweep.dir"]),
    "unknown flag": (["--multi-run"], ["--multi-run: no such option; did you mean --multirun?"]),
    "flag of Hydra that would replace conf": (["--config-path", "mine"], ["--config-dir"]),
    "folder of YAML that is not there": (["--config-dir", "absent"], ["--config-dir absent: is not there"]),
    "root YAML that is not there": (
        ["--config-name", "confg"],
        ["--config-name confg: there is no confg.yaml", "config?"],
    ),
    "missing path": (["data=text"], ["data.path: is missing: set data.path=..."]),
    "path that is not there": (["data=text", "data.path=no.txt"], ["data.path=no.txt: is not there: give a file"]),
    "folder without such files": (
        ["data=text", "data.path=mine"],
        ["data.path=mine: has no file that matches pattern"],
    ),
    "empty file": (["data=text", "data.path=empty.txt"], ["data.path: no text in empty.txt, 0 bytes"]),
    "text shorter than a block": (
        ["data=text", "data.path=short.txt"],
        [
            "data.seq_len=256: a row takes 257 tokens, and short.txt has 10 (10 bytes), 1 of them for validation: use "
            "a text of about 2,570 bytes or more"
        ],
    ),
    "block longer than the text": (
        [*TEXT, "data.seq_len=500"],
        ["data.seq_len=500", "data.seq_len to 129 or less"],
    ),
    "bad UTF-8": (["data=text", "data.path=bad.txt"], ["data.path: bad.txt is not UTF-8 at byte 1500 (0xff)", "iconv"]),
    "a line that is no document": (
        ["data=jsonl", "data.path=notes.jsonl"],
        ["data.path: notes.jsonl line 2: has neither", "it has: txt"],
    ),
    "a role without a token": (
        ["data=jsonl", "data.path=talk.jsonl"],
        ["talk.jsonl line 1: role 'boss' has no token", "+data.roles.boss="],
    ),
    "a token that is none for roles": (
        ["data=jsonl", "data.path=talk.jsonl", "+data.roles.boss=chef"],
        ["data.roles.boss=chef: must be <|user|> or <|agent|> or <|history|>"],
    ),
    "a pickle with code": (
        [*TEXT, "data.vocabulary_path=voc.pkl"],
        ["voc.pkl: cannot be used: ", "it would run code"],
    ),
    "a vocabulary that is not there": (
        [*TEXT, "data.vocabulary_path=no.pkl"],
        ["no.pkl: cannot be used: No such file"],
    ),
    "two vocabularies": (
        [*TEXT, "data.vocabulary_path=whole.pkl", "data.vocabulary=bytes"],
        ["data.vocabulary=bytes: vocabulary_path is one of characters"],
    ),
    "vocabulary too small": (
        [*TEXT, "data.vocabulary=bpe", "data.vocab_size=9"],
        ["data.vocab_size=9: must be from 261 to 16777216"],
    ),
    "another file as Shakespeare": (
        ["data=shakespeare", "data.path=good.txt"],
        ["is not tiny Shakespeare", "use data=text"],
    ),
    "rows longer than a model has room for": (
        [*TEXT, "data.seq_len=100", "model=transformer", "model.max_seq_len=64"],
        ["data.seq_len=100: rows are longer than model.max_seq_len (64): set model.max_seq_len to 100 or more"],
    ),
    "a recurrent model that sees the future": (
        [*TEXT, "model=gru", "model.bidirectional=true"],
        ["model.bidirectional=true: this model sees the whole sequence, and so the token that it is asked to predict"],
    ),
    "a Transformer that sees the future": (
        ["model=transformer", "model.causal=false"],
        ["model.causal=false: this model sees the whole sequence", "train the model to label, as data=hello does"],
    ),
    "no head for the next token": (
        [*TEXT, "model=rnn", "model.head=none"],
        ["model.head=none: this model has an output for each hidden unit, not for each token: remove this setting"],
    ),
    "a letter that is ignored": (
        ["data=hello", "model=rnn", "data.ignore_index=3"],
        ["data.ignore_index=3: is the letter o, which would not be learned: set it to -100"],
    ),
    "heads that do not divide": (["model.num_heads=5"], ["model.hidden_size (384)", "(5): try 380 or 385"]),
    "micro-steps that do not divide": (["trainer.accumulate=3"], ["data.batch_size (100)", "(3): try 99 or 102"]),
    "layers to compute again in a model without": (
        ["model=gru", "trainer.activation_checkpointing=true"],
        ["trainer.activation_checkpointing=true: works layer by layer, and Recurrent has no ModuleList named layers"],
    ),
    "id beyond the vocabulary": (
        ["data.vocab_size=3"],
        ["data.pad_id=3: must be an id, from 0 to 2: set data.vocab_size to 4 or more"],
    ),
    "padding that is learned": (["data.ignore_index=-100"], ["data.ignore_index=-100: must be data.pad_id (3)"]),
    "padding that is learned, in text": ([*TEXT, "data.ignore_index=0"], ["data.ignore_index=0: must be 3"]),
    "cosine without a number of steps": (
        ["schedule=cosine", "trainer.max_seconds=9"],
        ["set trainer.max_steps too, or schedule=constant or schedule=wsd"],
    ),
    "a device that is not there": (["device=cuda:99"], ["device (cuda:99) is not there", "device=auto or device=cpu"]),
    "no device": (["device=gpu"], ["device (gpu) must be auto, cpu, cuda, cuda:N or mps"]),
    "fp16 on the CPU": (["device=cpu", "precision=fp16"], ["precision (fp16) needs a CUDA device", "bf16 or fp32"]),
    "TF32 on the CPU": (["device=cpu", "trainer.tf32=true"], ["trainer.tf32=true: is for CUDA", "on cpu: leave it"]),
    "a precision that is none": (["precision=fp8"], ["precision=fp8: must be auto, fp32, bf16, fp16"]),
    "weights that are not there": (["init_from=absent"], ["init_from=absent: is not there"]),
    "weights beside a run to start from": (
        ["init_from=good.txt", "resume=mine"],
        ["init_from=good.txt: resume=mine has weights, too"],
    ),
    "a run to continue that is not there": (["resume=absent"], ["resume=absent: is not there"]),
    "nothing to continue": (["resume="], ["resume=: is not there: give auto, a run directory or a checkpoint"]),
    "a run directory that is a file": (["run_dir=good.txt"], ["run_dir=good.txt: is a file"]),
    "a run directory below a file": (
        ["run_dir=good.txt/run"],
        ["run_dir=good.txt/run: good.txt is a file: give a directory"],
    ),
    "no run directory": (["run_dir="], ["run_dir=: is empty"]),
    "Hydra's own run directory": (["hydra.run.dir=here"], ["A run's directory is run_dir"]),
    "Hydra's own run directory, otherwise": (["hydra.run={dir: here}"], ["A run's directory is run_dir"]),
    "Hydra's own unknown key": (["hydra.foo=1"], ["hydra.foo"]),
    "Hydra's own mode": (["hydra.mode=MULTIRUN"], ["hydra.mode=MULTIRUN: is set by the program"]),
    "a run directory that cannot be written": (["run_dir=/proc"], ["run_dir=/proc: cannot be written to"]),
    "a name too long": ([f"run_dir={'x' * 300}"], ["File name too long"]),
    "a sweep that is no sweep": (["-m", "seed=range(0,3,0)"], ["these values make no sweep"]),
    "options by pattern": (
        ["-m", "model=glob(*)"],
        ["model=glob(*): write the options one by one: model=counting,deltanet,gated_deltanet"],
    ),
    "a sweep that starts from nothing": (["-m", "seed=1,2", "resume=absent"], ["resume=absent: is not there"]),
    "a folder without checkpoints": (["resume=mine"], ["resume=mine: holds no checkpoint"]),
    "a file that is no checkpoint": (["resume=good.txt"], ["resume=good.txt: is not a checkpoint"]),
    "a pickle to run again": (["--experimental-rerun", "voc.pkl"], ["would run code from a file"]),
    "two questions": (["--cfg", "job", "--info"], ["choose one of them"]),
    "completion for nobody": (["-sc", "install=foo"], ["write -sc install=bash"]),
    "a root that is none": (["--config-name", "model/v8"], ["is no root YAML: write `defaults: [/config, _self_]` at"]),
    "number as a key": ([*MINE, "model=number"], ["model.5=6: no such key"]),
    "defaults in a circle": ([*MINE, "model=circle"], ["include each other in a circle"]),
    "a key with no meaning": (["+model._args_=[1]"], ["model._args_: has no meaning here"]),
    "no callback": (
        ["+callbacks.x._target_=pathlib.Path"],
        ["must be a samout_train.training.callbacks.base.Callback"],
    ),
    "a decay beyond 1": (["optimizer.betas=[2,0.9]"], ["optimizer.betas=[2, 0.9]: must be a list"]),
    "a seed too large": (["seed=99999999999999999999"], ["seed=99999999999999999999: must be from 0"]),
    "a sample's seed too large": ([f"callbacks.sample.seed={10**23}"], ["callbacks.sample.seed=1", "must be from 0"]),
    "one document": (["data=jsonl", "data.path=one.jsonl"], ["data.path: one.jsonl has 1 document: use two or more"]),
    "a row that holds no copy": (["data=copy", "data.seq_len=1"], ["data.seq_len=1: a row needs a symbol and"]),
    "a row with no middle": (["data=copy", "data.seq_len=9"], ["data.seq_len=9: a row has two halves"]),
    "a length to test at, twice": (
        ["data=copy", "data.test_lengths=[16,16]"],
        ["test_lengths=[16, 16]: has a value twice"],
    ),
    "a distance to test at, twice": (["data=needle", "data.test_distances=[16,16]"], ["[16, 16]: has a value twice"]),
    "one of two distances, twice": (["data=copy_first", "data.test_distances=[16,16]"], ["has one of them twice"]),
    "a modulus that is no prime": (["data=modular_arithmetic", "data.modulus=6"], ["data.modulus=6: is 2 times 3"]),
    "pairs for longer rows": (
        ["data=recall", "data.num_pairs=500"],
        ["data.seq_len=64: a row needs 4 tokens for each"],
    ),
    "a pattern of no mixers": (["model=hybrid", "model.pattern=[]"], ["model.pattern=[]: names no mixer"]),
    "a pattern of an unknown mixer": (["model=hybrid", "model.pattern=[foo]"], ["model.pattern=[foo]: no such mixer"]),
    "a pattern for a model of one mixer": (
        ["model=gla", "model.pattern=[maxplus]"],
        ["model.pattern=[maxplus]: this model has no mixers to name: choose model=hybrid"],
    ),
    "an unknown key of a mixer of one's own": (
        [*MINE, "model=hybrid", "model.pattern=[small_window]", "model.mixers.small_window.windw=3"],
        ["model.mixers.small_window.windw=3: no such key; did you mean model.mixers.small_window.window?"],
    ),
    "a gate for a mixer with its own": (
        ["model=gla", "model.output_gate=silu"],
        ["model.output_gate=silu: changes nothing, as the mixer has", "set model.mixer.output_gate"],
    ),
    "a convolution for mixers with their own": (
        ["model=hybrid", "model.pattern=[mlstm,rglru]", "model.convolution_size=3"],
        ["model.convolution_size=3: changes nothing", "set model.mixers.mlstm.convolution_size, model.mixers.rglru."],
    ),
    "a decay in place of a half-life": (
        ["trainer.ema=0.99"],
        ["trainer.ema=0.99: is a number of tokens", "halves a weight in 69 steps"],
    ),
    "half a callback": (["+callbacks.report._partial_=true"], ["callbacks.report._partial_: is not for callbacks"]),
    "a comparison to train": (
        ["experiment=maxplus_ablation"],
        ["is a comparison of models: write samout-train compare"],
    ),
    "a mapping with a number": (
        ["data=jsonl", "data.path=two.jsonl", "data.roles.user=5"],
        ["data.roles.user=5: must be"],
    ),
    "a quote that does not end": (["data=text", "data.path='a"], ["data.path='a: cannot be read"]),
    "a plugin that is not there": (
        ["hydra/launcher=ray"],
        ["hydra/launcher=ray: no such option; there are basic"],
    ),
    "a sweep that is to be shown": (
        ["-m", "--cfg", "job"],
        ["-m: --cfg is for one run: leave -m out"],
    ),
    "broken YAML": (
        [*MINE, "model=broken"],
        ["mine/model/broken.yaml line 3, column 14: mapping values are not allowed"],
    ),
    "duplicate key": (
        [*MINE, "model=twice"],
        ["mine/model/twice.yaml line 5, column 1: found duplicate key hidden_size"],
    ),
    "tab in YAML": (
        [*MINE, "model=tab"],
        ["mine/model/tab.yaml line 2, column 1: a tab, where YAML takes spaces only"],
    ),
    "defaults that are not there": (
        [*MINE, "model=names_v9"],
        ["mine/model/names_v9.yaml line 2: its defaults name model/v9, which is not there"],
    ),
    "interpolation to nothing": ([*MINE, "model=interpolates"], ["${model.width} names a key that is not there"]),
    "YAML that is no UTF-8": ([*MINE, "model=latin"], ["mine/model/latin.yaml line 1: is not UTF-8 at byte 5 (0xe9)"]),
    "environment variable": (["seed=${oc.env:NO_SUCH}"], ["the environment variable NO_SUCH is not set"]),
    "Python that is not there": (["model._target_=absent.Model"], ["model._target_=absent.Model: cannot be imported"]),
    "Python that raises": (
        [*MINE, "model=raises"],
        ["model._target_=raises.Model: cannot be imported", "ZeroDivision"],
    ),
    "Python that does not take what the run gives": (
        [*MINE, "model=no_vocabulary"],
        ["model._target_: Model does not take the argument vocab_size, which the run gives: add it"],
    ),
    "an optimizer of torch as it stands": (
        ["optimizer._target_=torch.optim.SGD"],
        [
            "optimizer.betas=[0.9, 0.999]: no such key; torch.optim.SGD does not take it: leave it out, "
            "'~optimizer.betas'",
            "optimizer._target_: SGD does not take the argument model, which the run gives: name a function "
            "(model, *, lr, ...) for a torch optimizer, like samout_train/training/optimizers/adam.py",
        ],
    ),
    "a schedule of torch": (
        ["schedule._target_=torch.optim.lr_scheduler.StepLR", "+schedule._partial_=true"],
        [
            "schedule._target_=torch.optim.lr_scheduler.StepLR: torch's schedulers are not supported: name a class "
            "whose objects are called with a Progress (step, total_steps, share) and return the factor on the rate"
        ],
    ),
    "a schedule that is called too early": (
        ["schedule=constant", "schedule._target_=samout_train.training.schedules.first_limit"],
        ["schedules.first_limit: lacks arguments when it is called: name a class"],
    ),
    "what is no schedule": (
        ["schedule=constant", "schedule._target_=fractions.Fraction", "run_dir=no_schedule"],
        ["schedule: Fraction cannot be called with a Progress ('Fraction' object is not callable): name a class"],
    ),
    "what is no class": (
        ["optimizer._target_=samout_train.training.optimizers.adam.__doc__"],
        ["is not a class or function"],
    ),
    "what the run gives": (["+model.vocab_size=9"], ["model.vocab_size=9: is not set in the configuration"]),
    "a part that is not partial": (["model._partial_=false"], ["model._partial_: must be true"]),
    "defaults in a circle of two": ([*MINE, "model=there"], ["include each other in a circle"]),
    "a directory for each job": (
        ["-m", "seed=1,2", "hydra.sweep.dir=choice(a,b)"],
        ["hydra.sweep.dir: must be one directory, for all jobs"],
    ),
    "a resolver that is not there": (["seed=${foo:1}"], ["${foo:...} is not a known interpolation"]),
    "more pairs than keys": (
        ["data=recall", "data.num_pairs=9", "data.vocab_size=8"],
        ["data.num_pairs=9: data.vocab_size (8) has 3 keys: set it to 20 or more"],
    ),
    "a distance within the words": (["data=needle", "data.test_distances=[1]"], ["the mark occurs again after the"]),
    "questions to train on": (["data=choices", "data.path=good.txt"], ["questions are evaluated on, not trained on"]),
    "no shards": (["data=shards", "data.paths=[]"], ["data.paths: is empty: set folders of shards"]),
    "a folder without shards": (["data=shards", "data.paths=[mine]"], ["data.paths: mine"]),
    "more weights than folders": (
        ["data=shards", "data.paths=[]", "data.weights=[1]"],
        ["data.weights=[1]: there are 1 weights for 0 folders"],
    ),
    "padding that is learned, in shards": (
        ["data=shards", "data.paths=[]", "data.ignore_index=0"],
        ["data.ignore_index=0: must be 3, the padding id"],
    ),
    "a vocabulary without special tokens": (
        [*TEXT, "data.vocabulary_path=bare.pkl"],
        ["bare.pkl: cannot be used: a vocabulary begins with"],
    ),
    "a pickle with a fraction": ([*TEXT, "data.vocabulary_path=fraction.pkl"], ["it holds a"]),
    "a pickle that is cut": ([*TEXT, "data.vocabulary_path=cut.pkl"], ["cut.pkl: cannot be used: no pickle of lists"]),
    "a pickle that is damaged": ([*TEXT, "data.vocabulary_path=memo.pkl"], ["(it is damaged)"]),
    "a line that is no JSON": (
        ["data=jsonl", "data.path=broken.jsonl"],
        ["data.path: broken.jsonl line 2: is not JSON", "write one object per line"],
    ),
    "an object with a key twice": (["data=jsonl", "data.path=again.jsonl"], ['has "text" twice in one object']),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files of the mistakes."""
    for name, content in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", spread(MISTAKES, 5))
def test_a_mistake_is_answered(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, wanted = MISTAKES[name]
    before = sorted(folder.rglob("*"))
    assert main(words) == 2
    out, error = capsys.readouterr()
    assert not out and "Traceback" not in error
    assert 1 <= len(error.splitlines()) <= 8 and max(map(len, error.splitlines())) <= 400, error
    for text in wanted:
        assert text in error, error
    assert_recorded(f"mistakes: {name}", error)
    after = [path for path in sorted(folder.rglob("*")) if path.suffix != ".pyc" and path.name != "__pycache__"]
    assert after == before, "a refused request leaves nothing behind"


def test_no_message_is_recorded_of_what_is_no_mistake_any_more() -> None:
    recorded = json.loads(MESSAGES.read_text("utf-8"))
    names = {name.removeprefix("mistakes: ") for name in recorded if name.startswith("mistakes: ")}
    assert names == set(MISTAKES)


def test_there_are_thirty_and_more() -> None:
    assert len(MISTAKES) >= 30


def test_all_mistakes_come_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        *("optimizer=adamm", "optimizer.lr=1", "data=text", "data.path=bad.txt", "model.num_heads=5", "seed=x"),
        *("trainer.max_steps", "schedul=wsd", "model.hidden_size=384", "trainer.accumulate=0", "device=tpu"),
    ]
    assert main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    starts = ["optimizer=adamm:", "trainer.max_steps:", "schedul=wsd:", "seed=x:", "data.path: bad.txt is not UTF-8"]
    starts += ["model.hidden_size (384)", "trainer.accumulate=0:"]
    for start in starts:
        assert any(line.startswith(start) for line in lines), (start, lines)
    assert len(lines) == len(starts)


def test_bf16_on_hardware_without_it_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class NoDevice:
        def __init__(self, device: torch.device) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *exception: object) -> None: ...

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device", NoDevice)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old GPU")
    assert main(["precision=bf16"]) == 2
    assert "precision (bf16) is not in the hardware of an old GPU: use fp16" in capsys.readouterr().err
