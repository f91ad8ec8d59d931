"""How a person is drawn: a walking skeleton seen from some side, its parts painted from far to near."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sdcl.data.synthetic.canvas import Canvas, Material, Pattern, Point
from sdcl.data.synthetic.people import BAG, HAIR, HAT, LOWER, SHOES, SKIN, UPPER, UPPER_SECOND, Person
from sdcl.data.synthetic.randomness import Draws, unit_vector


@dataclass(frozen=True)
class Pose:
    """Where the body faces and how it walks; each direction is a (cosine, sine) of full turns."""

    facing: float
    """Cosine of the body's turn: 1 = front, 0 = side, −1 = back."""
    sideways: float
    """Its sine: 1 = the person looks to the image's right."""
    stride: float
    """−1 … 1: which leg is in front and how far."""
    lift: float
    """0 … 1: how far the leg that swings forward has left the ground."""
    arm_swing: float
    bent_arm: int
    """Side of an arm held before the chest, as with a telephone; 0 = none."""


def draw_pose(track: Draws, draws: Draws, heading: float, view_range: float) -> Pose:
    """A pose for one image of a walk past a camera.

    Args:
        track: draws of this identity in this camera: one walk, in one direction.
        draws: draws of the image.
        heading: full turns, the direction in which most people pass this camera; 0 = towards it.
        view_range: 0 … 1, how far directions may differ from the front view.
    """
    along = heading + track.uniform(-0.2, 0.2) + (0.5 if track.chance(0.35) else 0.0)
    turn = (along - np.floor(along + 0.5)) + draws.uniform(-0.09, 0.09)  # −0.5 … 0.5 of a turn, and a little beyond
    facing, sideways = unit_vector(view_range * turn)
    stride, lift = unit_vector(draws.uniform())
    return Pose(
        facing,
        sideways,
        stride=stride,
        lift=max(lift, 0.0),
        arm_swing=draws.uniform(0.3, 1.0),
        bent_arm=draws.choose((-1, 1)) if draws.chance(0.15) else 0,
    )


class _Body:
    """One person in one pose on one canvas: the places of joints, and the parts that hang on them."""

    def __init__(self, canvas: Canvas, person: Person, pose: Pose) -> None:
        self.canvas, self.person, self.pose = canvas, person, pose
        self.chin = person.head
        self.shoulder_y = person.head + 0.055
        self.knee_y = 0.5 * (person.hip + 0.965)
        self.upper = person.upper.on(max(pose.facing, 0.0), pose.sideways)

    def place(self, x: float, y: float, z: float) -> Point:
        """Image place of a point x to the image's right and z forward when seen from the front."""
        return x * self.pose.facing + z * self.pose.sideways, y

    def depth(self, x: float, z: float) -> float:
        """Nearness to the camera."""
        return z * self.pose.facing - x * self.pose.sideways

    def half(self, width: float, depth: float) -> float:
        """Half width of an elliptic section, seen from the pose's direction."""
        a, b = width * self.pose.facing, depth * self.pose.sideways
        return float(np.sqrt(a * a + b * b))

    def leg(self, side: int) -> None:
        person, pose, limb = self.person, self.pose, self.canvas.limb
        reach = side * pose.stride * person.gait
        lift = 0.05 * pose.lift * (side * pose.stride < 0)
        hip = self.place(side * 0.5 * person.hip_width, person.hip, 0.0)
        knee = self.place(side * 0.47 * person.hip_width, self.knee_y, 0.6 * reach + 0.25 * lift)
        ankle = self.place(side * 0.4 * person.hip_width, 0.965 - lift, reach)
        toe = self.place(side * 0.55 * person.hip_width, 0.985 - 0.6 * lift, reach + 0.065)
        thigh, calf, thin = 0.056 * person.girth, 0.036 * (0.5 + 0.5 * person.girth), 0.022
        limb(hip, knee, thigh, calf, SKIN)
        limb(knee, ankle, calf, thin, SKIN)
        if person.boots:
            top = _between(ankle, knee, person.boots / (0.965 - self.knee_y))
            limb(top, ankle, 1.15 * calf, 0.03, SHOES)
        limb(ankle, toe, 0.023, 0.017, SHOES)
        cloth: Material = (LOWER, self._leg_pattern(side))
        if person.lower == "skirt":
            return
        wide = person.trouser
        end = min((person.lower_length - person.hip) / (self.knee_y - person.hip), 1.0)
        low = _between(hip, knee, end)
        limb(hip, low, 1.05 * thigh, (thigh + end * (calf - thigh)) * (0.7 + 0.4 * wide), cloth)
        if person.lower_length > self.knee_y:
            end = min((person.lower_length - self.knee_y) / (0.965 - self.knee_y), 0.97 - person.boots)
            low, ends = _between(knee, ankle, end), (calf * (0.7 + 0.4 * wide), thin * (0.4 + 0.8 * wide))
            limb(knee, low, *ends, cloth, self.knee_y - person.hip)

    def _leg_pattern(self, side: int) -> Pattern:
        spec = self.person.lower_print
        if spec.kind == "side":  # a stripe down the outer seam
            seam = 0.045 * side * self.pose.facing
            return lambda across, along: np.abs(across - seam) < 0.014
        return spec.on(1.0, 0.0)

    def skirt(self) -> None:
        person = self.person
        waist = self.half(person.hip_width * person.girth, 0.075 * person.girth)
        wide = self.half(person.hip_width * (0.9 + 0.5 * person.flare), 0.09 * person.flare + 0.02)
        sway = 0.02 * self.pose.stride * self.pose.sideways
        top = person.hip
        nodes = [(top - 0.06, 0.0, 0.9 * waist), (top + 0.03, 0.0, 1.1 * waist), (person.lower_length, sway, wide)]
        self.canvas.column(nodes, (LOWER, self._leg_pattern(1)))

    def torso(self) -> None:
        person = self.person
        thick = 0.072 * person.girth
        chest = self.half(person.shoulder, thick)
        waist = self.half(0.8 * person.hip_width * (0.4 + 0.6 * person.girth), 0.92 * thick)
        hips = self.half(person.hip_width * (0.55 + 0.45 * person.girth), thick + 0.006)
        top = self.shoulder_y
        self.canvas.limb(self.place(0.0, self.chin - 0.03, 0.004), self.place(0.0, top, 0.0), 0.026, 0.036, SKIN)
        if person.lower != "skirt":
            seat: Material = LOWER
            if person.lower_print.kind != "side":
                seat = (LOWER, person.lower_print.on(1.0, 0.0))
            self.canvas.column([(person.hip - 0.05, 0.0, waist), (person.hip + 0.04, 0.0, hips)], seat)
        nodes = [
            (top - 0.025, 0.0, 0.35 * chest),
            (top, 0.0, 0.86 * chest),
            (top + 0.03, 0.0, chest),
            (top + 0.6 * (person.hip - top), 0.0, max(waist, 0.82 * chest) if person.hem > 0.05 else waist),
            (person.hip + 0.01, 0.0, hips),
        ]
        if person.hem:
            wide = hips * (1 + (person.flare - 1) * person.hem / 0.15) + 0.004
            nodes.append((person.hip + 0.01 + person.hem, 0.0, wide))
        self.canvas.column(nodes, (UPPER, self.upper))

    def arm(self, side: int) -> None:
        person, pose = self.person, self.pose
        swing = -side * pose.stride * pose.arm_swing * person.gait
        wide = person.shoulder + 0.004
        shoulder = self.place(side * wide * 0.93, self.shoulder_y + 0.022, 0.0)
        elbow = self.place(side * (wide + 0.022), self.shoulder_y + 0.16, 0.5 * swing - 0.01)
        hand = self.place(side * (wide + 0.016), self.shoulder_y + 0.3, swing + 0.03)
        if side == pose.bent_arm:
            hand = self.place(side * 0.03, self.shoulder_y + 0.06, 0.13)
        thick, thin = 0.03 * (0.4 + 0.6 * person.girth), 0.021
        limb = self.canvas.limb
        limb(shoulder, elbow, thick, thin, SKIN)
        limb(elbow, hand, thin, 0.019, SKIN)
        cloth: Material = UPPER_SECOND if person.sleeve_contrast else UPPER
        if not person.sleeve_contrast and person.upper.kind in ("rows", "checks", "dots", "half", "band"):
            cloth = (UPPER, self.upper)
        if person.sleeve:
            end = _between(shoulder, elbow, min(2 * person.sleeve, 1.0))
            limb(shoulder, end, thick + 0.006, thin + 0.008, cloth, 0.03)
        if person.sleeve > 0.5:
            limb(elbow, _between(elbow, hand, 1.8 * person.sleeve - 0.9), thin + 0.008, thin + 0.005, cloth, 0.17)

    def head(self) -> None:
        person, pose, canvas = self.person, self.pose, self.canvas
        tall = 0.5 * person.head
        wide, middle = 0.78 * tall, self.place(0.0, tall, 0.012)
        canvas.ellipse(middle, wide, tall, HAIR if person.hair != "bald" else SKIN)
        if pose.facing > -0.45 and person.hair != "bald":  # the face turns with the head and leaves a rim of hair
            low = {"short": 0.12, "full": 0.24}.get(person.hair, 0.2)
            face = (middle[0] + 0.42 * wide * pose.sideways, middle[1] + low * tall)
            canvas.ellipse(face, wide * (0.45 + 0.42 * max(pose.facing, 0.0)), tall * (0.98 - low), SKIN)
        for side in (-1, 1):
            if self.depth(side * 0.4, 1.0) > 0.35:
                canvas.ellipse(self.place(side * 0.4 * wide, 1.02 * tall, 0.9 * wide), 0.0075, 0.006, HAIR)
        if person.hair in ("full", "bob"):
            for side in (-1, 1):
                at = self.place(side * 0.85 * wide, 0.0, -0.015)[0]
                canvas.limb((at, 0.6 * tall), (at, tall * (1.5 if person.hair == "full" else 2.0)), 0.016, 0.016, HAIR)
        if person.hat:
            crown = ((-0.012, 0.7), (0.25 * tall, 1.08), (0.62 * tall, 1.1))
            canvas.column([(y, middle[0], half * wide) for y, half in crown], HAT)
            if pose.facing > -0.3:
                canvas.limb((middle[0], 0.6 * tall), self.place(0.0, 0.66 * tall, 0.075), 0.01, 0.008, HAT)

    def hair_behind(self) -> None:
        person = self.person
        tall = 0.5 * person.head
        if person.hair == "long":
            half = self.half(0.052, 0.03)
            at = self.place(0.0, 0.0, -0.025)[0]
            falls = ((0.4 * tall, 1.0), (self.shoulder_y, 1.1), (self.shoulder_y + 0.09, 0.7))
            self.canvas.column([(y, at, half * share) for y, share in falls], HAIR)
        elif person.hair == "bun":
            self.canvas.ellipse(self.place(0.0, 0.12 * tall, -0.05), 0.03, 0.03, HAIR)
        elif person.hair == "tail":
            start, end = self.place(0.0, 0.7 * tall, -0.055), self.place(0.0, self.shoulder_y + 0.05, -0.085)
            self.canvas.limb(start, end, 0.02, 0.012, HAIR)

    def backpack(self) -> None:
        size, top = self.person.bag_size, self.shoulder_y
        middle = self.place(0.0, 0.0, -0.072 * self.person.girth - 0.03 * size)[0]
        half = self.half(0.075 * size, 0.042 * size)
        outline = ((-0.01, 0.75), (0.03, 1.0), (0.2 * size, 1.05), (0.225 * size, 0.8))
        self.canvas.column([(top + y, middle, half * share) for y, share in outline], BAG)

    def straps(self) -> None:
        if self.pose.facing > 0.1:
            for side in (-1, 1):
                start = self.place(side * 0.055, self.shoulder_y - 0.012, 0.02)
                end = self.place(side * 0.055, self.shoulder_y + 0.14, 0.06)
                self.canvas.limb(start, end, 0.013, 0.012, BAG)

    def bag(self) -> None:
        person = self.person
        side, size = person.bag_side, person.bag_size
        middle = self.place(side * (person.hip_width + 0.035), 0.0, 0.0)[0]
        half = self.half(0.03, 0.07 * size)
        if person.bag == "shoulder":  # its strap runs across the chest
            low, strap = person.hip, self.place(-side * 0.05, self.shoulder_y, 0.03)
        else:
            low = person.hip + 0.13
            strap = self.place(side * (person.shoulder + 0.02), low - 0.1, 0.03)
        self.canvas.limb(strap, (middle, low - 0.03), 0.01, 0.01, BAG)
        self.canvas.column([(low - 0.03, middle, 0.9 * half), (low + 0.085 * size, middle, 1.1 * half)], BAG)


def draw_figure(canvas: Canvas, person: Person, pose: Pose) -> None:
    """Paint a person in a pose on the canvas."""
    body = _Body(canvas, person, pose)
    for side in sorted((-1, 1), key=lambda side: body.depth(side, 0.0)):
        body.leg(side)
    if person.lower == "skirt":
        body.skirt()
    parts: list[tuple[float, Callable[[], None]]] = [
        (0.0, body.torso),
        (0.001, body.head),
        (body.depth(0.0, -0.06), body.hair_behind),
        *((body.depth(side * 0.12, 0.03), lambda side=side: body.arm(side)) for side in (-1, 1)),
    ]
    if person.bag == "backpack":
        parts += [(body.depth(0.0, -0.09), body.backpack), (0.0005, body.straps)]
    elif person.bag != "none":
        parts.append((body.depth(0.13 * person.bag_side, 0.035), body.bag))
    for _, paint in sorted(parts, key=lambda part: part[0]):
        paint()


def _between(start: Point, end: Point, share: float) -> Point:
    return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])
