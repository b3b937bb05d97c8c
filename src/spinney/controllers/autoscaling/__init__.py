"""HorizontalPodAutoscalers that the template of a set asks for."""
