"""What a head consists of, and how each tissue relaxes."""

# Proton density (relative), T1, T2 and T1 after contrast medium (ms) about 1.5 T: of the order that Stanisz 2005 (doi
# 10.1002/mrm.20605), de Bazelaire 2004 (doi 10.1148/radiol.2303021331) and BrainWeb (Kwan 1999, doi 10.1109/42.816072)
# report, chosen so that the contrasts look as on clinical scans. T2 of fluids is what a fast spin echo shows, and
# moving blood has little proton density, as it has left the slice before the echo.
RELAXATION = {
    "air": (0.0, 1000.0, 100.0, 1000.0),
    "gm": (0.82, 1200.0, 96.0, 1140.0),
    "wm": (0.72, 780.0, 81.0, 760.0),
    "deep": (0.77, 960.0, 78.0, 930.0),  # basal ganglia, whose iron shortens T2
    "csf": (1.0, 4200.0, 1400.0, 4200.0),
    "lesion": (0.86, 1350.0, 150.0, 1300.0),
    "oedema": (0.88, 1350.0, 135.0, 1350.0),
    "glioma": (0.92, 1650.0, 165.0, 1400.0),
    "tumour": (0.85, 1250.0, 110.0, 360.0),  # solid, with leaky vessels
    "necrosis": (0.97, 2600.0, 260.0, 2400.0),
    "bone": (0.05, 1000.0, 30.0, 1000.0),
    "marrow": (0.6, 380.0, 80.0, 370.0),
    "fat": (0.9, 300.0, 105.0, 300.0),
    "muscle": (0.75, 980.0, 40.0, 780.0),
    "skin": (0.7, 850.0, 38.0, 520.0),
    "mucosa": (0.85, 1200.0, 82.0, 420.0),
    "gland": (0.85, 800.0, 75.0, 420.0),
    "dura": (0.8, 900.0, 32.0, 420.0),
    "vein": (0.8, 1300.0, 35.0, 150.0),
    "artery": (0.35, 1300.0, 30.0, 200.0),
    "vitreous": (1.0, 3800.0, 1000.0, 3800.0),
    "lens": (0.6, 900.0, 30.0, 900.0),
}
TISSUES = tuple(RELAXATION)
FATTY = ("fat", "marrow")  # what fat suppression darkens
