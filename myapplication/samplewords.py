"""The words from which the names in the sample data are made."""

from __future__ import annotations


def words(text: str) -> list[str]:
    return text.split()


FIRST_NAMES = tuple(
    (word,)
    for word in words(
        "Ada Agnes Alba Alice Amélie Amir Ana Andrea Anton Astrid Beatriz Ben Björn Camille Carla Casper "
        "Cécile Chiara Claire Daan Daria David Diego Dora Edith Elena Elias Elif Emil Emma Erik Eva Fatima "
        "Felix Filip Finn Flora François Frida Gabriel Giulia Greta Gustav Hana Hannah Henrik Hugo Ida "
        "Ines Irina Isak Jakub Jan Jana João Johanna Jonas Julia Karim Karin Katja Lara Lars Lea Leon Lina "
        "Lotte Louis Lucía Luka Łukasz Magnus Maja Manon Marco Maria Marta Matteo Maya Mikkel Mila Milan "
        "Nadia Niamh Nina Noah Nora Olga Oscar Paula Pavel Petra Rafael Rosa Sofia Sven Tereza Tom Yusuf Zoë"
    )
)

LAST_NAMES = tuple(
    (word,)
    for word in words(
        "Almeida Andersen Andersson Bakker Barbieri Baumann Becker Bergström Bernard Bianchi Blanc Bonnet "
        "Brandt Brennan Byrne Carvalho Castro Čermák Clarke Colombo Conti Costa Davies Delgado "
        "Díaz Dijkstra Doyle Dubois Dumont Dupont Dvořák Edwards Eriksen Esposito Evans Fabre Farkas "
        "Fernández Ferrari Ferreira Fischer Fontaine Forsberg Fuchs Gallagher Gallo García Garnier Georgiou "
        "Gomes González Graf Green Greco Gruber Hahn Hansen Hartmann Haugen Hoffmann Holm Horák Horváth "
        "Hughes Ionescu Ivanov Jansen Jensen Jiménez Johansson Jones Kaiser Kalniņš Karlsson Kask Keller "
        "Kelly Klein Koch Korhonen Kovács Kowalski Krüger Lambert Larsen Laurent Lefèvre Lehmann Lewandowski "
        "Lindgren López Lund Mäkinen Marino Marques Martin Martínez Mazur Meier Mendes Mercier Meyer Molina "
        "Moreau Morel Moretti Murphy Nagy Navarro Neumann Nielsen Nieminen Novák Nowak O'Brien Olsen Ortiz "
        "Papadopoulos Pereira Petersen Petrov Popescu Ramos Ricci Richter Rojas Romano Rossi Roth Rousseau "
        "Ryan Santos Schmidt Schneider Schwarz Silva Smit Sørensen Suárez Svensson Szabó Tamm Taylor Vasilev "
        "Visser Vogel Walsh Weber Wójcik Zieliński"
    )
)

# Bigger markets first: the sample data gives them more customers.
CITIES = (
    ("Berlin", "Central"),
    ("Paris", "West"),
    ("Madrid", "South"),
    ("Warsaw", "East"),
    ("Stockholm", "North"),
    ("Hamburg", "Central"),
    ("Amsterdam", "West"),
    ("Munich", "Central"),
    ("Rome", "South"),
    ("Brussels", "West"),
    ("Copenhagen", "North"),
    ("Vienna", "Central"),
    ("Dublin", "West"),
    ("Barcelona", "South"),
    ("Prague", "Central"),
    ("Budapest", "East"),
    ("Lyon", "West"),
    ("Oslo", "North"),
    ("Lisbon", "South"),
    ("Kraków", "East"),
    ("Zürich", "Central"),
    ("Helsinki", "North"),
    ("Athens", "South"),
    ("Bucharest", "East"),
    ("Rotterdam", "West"),
    ("Porto", "South"),
    ("Vilnius", "East"),
    ("Gothenburg", "North"),
    ("Sofia", "East"),
    ("Tallinn", "North"),
)

SERIES = tuple(
    (word,)
    for word in words(
        "Alder Aspen Birka Brisa Cala Cedar Dune Elba Fjord Flint Halden Hazel Juniper Kivi Lagom Linden "
        "Lumi Maren Mistral Nadir Norr Olea Onda Pebble Rowan Sable Selva Tarn Umbra Vega"
    )
)

# Name, category and a usual price; a series makes each a little cheaper or dearer.
ITEMS = (
    ("table lamp", "Lighting", 49),
    ("floor lamp", "Lighting", 119),
    ("pendant light", "Lighting", 89),
    ("desk lamp", "Lighting", 59),
    ("candle holder", "Lighting", 19),
    ("armchair", "Furniture", 329),
    ("side table", "Furniture", 99),
    ("bookshelf", "Furniture", 189),
    ("stool", "Furniture", 69),
    ("bench", "Furniture", 159),
    ("coat rack", "Furniture", 79),
    ("mirror", "Furniture", 109),
    ("cushion", "Textiles", 29),
    ("wool blanket", "Textiles", 79),
    ("linen curtain", "Textiles", 59),
    ("rug", "Textiles", 149),
    ("tea towel", "Textiles", 9),
    ("bath towel", "Textiles", 24),
    ("duvet cover", "Textiles", 69),
    ("tablecloth", "Textiles", 39),
    ("dinner plate", "Tableware", 14),
    ("soup bowl", "Tableware", 12),
    ("coffee mug", "Tableware", 11),
    ("teapot", "Tableware", 45),
    ("water glass", "Tableware", 8),
    ("wine glass", "Tableware", 13),
    ("cutlery set", "Tableware", 89),
    ("serving tray", "Tableware", 34),
    ("frying pan", "Kitchen", 54),
    ("saucepan", "Kitchen", 49),
    ("chef's knife", "Kitchen", 64),
    ("cutting board", "Kitchen", 29),
    ("storage jar", "Kitchen", 15),
    ("kettle", "Kitchen", 69),
    ("spice rack", "Kitchen", 27),
    ("plant pot", "Garden", 22),
    ("watering can", "Garden", 32),
    ("lantern", "Garden", 36),
    ("garden chair", "Garden", 129),
    ("herb planter", "Garden", 26),
)
