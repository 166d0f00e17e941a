"""What a person sees of an answer: printed text and JSON, an annotated video, an HTML page."""

from o3jax.report.annotate import annotate_video
from o3jax.report.answer import Answer, Evidence, format_answer, question_language
from o3jax.report.html import write_report

__all__ = ["Answer", "Evidence", "annotate_video", "format_answer", "question_language", "write_report"]
