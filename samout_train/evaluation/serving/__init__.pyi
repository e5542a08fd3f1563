from .api import application as application
from .engine import Engine as Engine, Generation as Generation
from .prefixes import PrefixStates as PrefixStates
from .requests import Limits as Limits, Reader as Reader, RequestError as RequestError
from .streamed import StreamedText as StreamedText
