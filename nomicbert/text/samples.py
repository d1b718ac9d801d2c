"""Sample texts in several languages and lengths, for comparing two backends or dtypes."""

LONG = (
    "A lighthouse keeper once wrote down every ship that passed his tower, with the hour, the "
    "weather and the colour of the flag. He did so for thirty-one years, and when he retired he "
    "had filled forty notebooks. Nobody had asked him to. The harbour office kept its own list, "
    "which named the owners and the cargo, and it was thought to be complete. A century later a "
    "historian laid the two side by side and found that the office had missed about one ship in "
    "nine: small boats that carried salt, letters and people without papers, who sailed at dusk "
    "and paid no fees. From the notebooks she could draw their routes, season by season, and show "
    "that a village up the coast had lived on that trade long before anyone admitted it. The "
    "lesson that she drew was modest. A record made for one purpose answers the questions of that "
    "purpose; a record made out of plain attention may answer others, later, that its author "
    "could not have known."
)
TEXTS = (
    "What is the capital of Portugal?",
    "Rain.",
    "The bridge was closed in 1987, after engineers had measured cracks of 3.5 mm in two piers.",
    "def area(r: float) -> float:\n    return math.pi * r**2",
    "Wie lange dauert die Fahrt von Zürich nach Mailand, wenn der Tunnel gesperrt ist?",
    "Le café ouvre à sept heures, sauf le dimanche.",
    "¿Dónde puedo renovar mi pasaporte?",
    "Сколько весит взрослый слон?",
    "昨天晚上我们在图书馆讨论了这篇关于气候变化的论文。",
    "電車が遅れているので、会議には間に合いません。",
    "كم عدد الكواكب في النظام الشمسي؟",
    "मौसम आज बहुत अच्छा है।",
    LONG,
)
