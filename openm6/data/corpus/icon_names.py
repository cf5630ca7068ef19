"""Icon names that no rule explains, matched by looking at the pictures: icon=emoji, and icons to leave out.

The sets without code points use older names (emojione, noto-v1) or names of their own (fxemoji).
"""

from __future__ import annotations


def _table(text: str) -> dict[str, str]:
    """`text` holds icon=emoji pairs, separated by white space."""
    return dict(pair.split("=") for pair in text.split())


NOTO_V1 = _table(
    """
    keycap-asterisk=*⃣ direct-hit=🎯 keycap-pound=#⃣
    """
)

EMOJIONE = _table(
    """
    keycap-asterisk=*⃣ keycap-pound=#⃣ flag-for-macau-sar-china=🇲🇴 a-button=🅰 ab-button=🆎 b-button=🅱
    o-button=🅾 blond-haired-person=👱 bride-with-veil=👰 cat-face-with-tears-of-joy=😹
    cat-face-with-wry-smile=😼 crying-cat-face=😿 direct-hit=🎯 dizzy-face=😵 exclamation-mark=❗
    question-mark=❓ flag-for-black-flag=🏴 flag-for-chequered-flag=🏁 flag-for-crossed-flags=🎌
    flag-for-rainbow-flag=🏳‍🌈 flag-for-triangular-flag=🚩 flag-for-white-flag=🏳
    flag-for-cocos-islands=🇨🇨 flag-for-macedonia=🇲🇰 flag-for-myanmar=🇲🇲
    flag-for-palestinian-territories=🇵🇸 flag-for-swaziland=🇸🇿 flag-for-turkey=🇹🇷 grinning-cat-face=😺
    grinning-cat-face-with-smiling-eyes=😸 heavy-heart-exclamation=❣ kissing-cat-face=😽
    man-and-woman-holding-hands=👫 man-in-suit-levitating=🕴 man-with-chinese-cap=👲 pouting-cat-face=😾
    robot-face=🤖 smiling-cat-face-with-heart-eyes=😻 two-men-holding-hands=👬 two-women-holding-hands=👭
    up-text-button=🆙 weary-cat-face=🙀
    """
)

FXEMOJI = _table(
    """
    2hearts=💕 alien=👽 americasglobe=🌎 anger=💢 anticlockwiseupwardsanddownwardsarrows=🔄 aok=👌
    arrowrightwardsdownwards=⤵ arrowrightwardsupwards=⤴ asiaaustraliaglobe=🌏 backwithleftwardsarrow=🔙
    ballottboxwithballott=🗳 banknotedollar=💵 banknoteeuro=💶 banknotepound=💷 banknoteyen=💴
    beachumbrella=🏖 bear=🐻 bellcancellation=🔕 blackdownpointingdoublearrow=⏬ blackleftpointingarrow=◀
    blackleftpointingdoublearrow=⏪ blackrightpointingarrow=▶ blackrightpointingdoublearrow=⏩
    blackskullcrossbones=☠ blackuppointingdoublearrow=⏫ blonde=👱 bolt=⚡ bookmarktab=📑 boot=👢 bow=🎀
    bowing=🙇 bride=👰 bunny=🐰 bunny-ears=👯 bunnyside=🐇 cat=🐱 catside=🐈 cellphone=📱
    chartdownwardstrend=📉 chartupwardstrend=📈 chartupwardstrendyen=💹 chilipepper=🌶 chineseflag=🇨🇳
    cjkunifiedideograph-a=🈯 cjkunifiedideograph-b=🈺 cjkunifiedideograph-c=🈲 cjkunifiedideograph-d=🈳
    cjkunifiedideograph-e=🈴 cjkunifiedideograph-f=🈵 cjkunifiedideograph-g=🈶 cjkunifiedideograph-h=🈷
    cjkunifiedideograph-i=🈚 cjkunifiedideograph-j=🈸 cjkunifiedideograph-k=🈹 clap=👏 clock12oclock=🕛
    clock12thirty=🕧 clock1oclock=🕐 clock1thirty=🕜 clock2oclock=🕑 clock2thirty=🕝 clock3oclock=🕒
    clock3thirty=🕞 clock4oclock=🕓 clock4thirty=🕟 clock5thirty=🕠 clock6oclock=🕕 clock6thirty=🕡
    clock7oclock=🕖 clockwiserightwardsleftwardscirclearrows=🔁
    clockwiserightwardsleftwardscirclearrowsone=🔂 closedmailboxlowered=📪 closedmailboxraised=📫
    openmailboxlowered=📭 openmailboxraised=📬 collision=💥 confetti=🎊 construct=👷 construction=🏗
    contact=👤 contact2=👥 controlknob=🎛 cop=👮 couple=💑 couplekiss=💏 dash=💨 diamondshapewithdotinside=💠
    dizzy=💫 dog=🐶 dogside=🐕 doubleexclaimationmark=‼ down=👇 downpointingsmallredtrisngle=🔽
    dragonhead=🐲 dragonside=🐉 eightspokedasterix=✳ email=📧 endwithleftwardsarrow=🔚
    envelopedownarrowabove=📩 europeafricaglobe=🌍 evergreen=🌲 exclaimationquestionmark=⁉ fallingleaf=🍂
    firstquartermoon=🌓 firstquartermoonface=🌛 lastquartermoon=🌗 lastquartermoonface=🌜 fishcakeswirl=🍥
    fistedhand=👊 flexbicep=💪 floppydisk2=💾 forkknife=🍽 foxsmiling=🦊 franceflag=🇫🇷 frog=🐸
    frontfacingchick=🐥 frown=🙍 fullmoon=🌕 gem=💎 girlgirl=👭 girlguy=👫 glasses=👓 gma=👵 golfer=🏌 gpa=👴
    greatbritainflag=🇬🇧 guapimao=👲 guardsman=💂 guyguy=👬 haircut=💇 hampster=🐹 hand=✋
    handheldvideocamera=📹 hands=👐 handup=🙋 headmassage=💆 heartarrow=💘 heartgreen=💚 heartpurple=💜
    heartribbon=💝 heartyellow=💛 heavylatincross=✝ heavymultiplicationsymbol=✖ heels=👠 high5=🙌
    highbrightness=🔆 lowbrightness=🔅 highspeedtrainbulletnose=🚅 hourglassflowingsand=⏳ index=☝
    italianflag=🇮🇹 japaneseangrymask=👺 japanflag=🇯🇵 koreaflag=🇰🇷 leaffluttering=🍃 left=👈
    leftmagnifyingglass=🔍 leftwritinghand=✍ leopardside=🐆 lightbulb=💡 lockandkey=🔐 loudspeaker=📢
    megaphone=📣 lowerleftpen=🖊 mahjong=🀄 makeupbag=👝 manltepiececlock=🕰 mansshirt=👕 mensrunner=👟
    mensshoe=👞 meridianglobe=🌐 monkeyhear=🙉 monkeysee=🙈 monkeyspeak=🙊 motorcycle=🏍 mouse=🐭 mouseside=🐁
    negativesquaredlatincaptiala=🅰 negativesquaredlatincaptialb=🅱 negativesquaredlatincaptialo=🅾
    newmoon=🌑 nogesture=🙅 nooneunder18symbol=🔞 notebookdecorativecover=📔 ogre=👹 okgesture=🙆
    oldpersonalcomputer=💻 onarrowleftright=🔛 outbox=📤 phonerightarrowleft=📲 pig=🐷 pigside=🐖 pigsnout=🐽
    pinkwallet=👛 poo=💩 potablewatersystem=🚰 pout=🙎 pray=🙏 present=🎁 racecar=🏎 raincloud=🌧
    raisedhandpartfingers=🖖 raisedhandsfingerssplayed=🖐 redheart=❤ reminder=🎗
    reversehandmiddlefinger=🖕 right=👉 rightmagnifyingglass=🔎 speaker3soundwaves=🔊
    speakeronesoundwave=🔉 speakercancellation=🔇 rowboat=🚣 running=🏃 runningshirt=🎽 russianflag=🇷🇺
    saggitarius=♐ sandals=👡 silhouetteohjapan=🗾 sixpointedstarwithdot=🔯 sleuthspy=🕵 snowcloud=🌨
    snowmountains=🏔 soonwithrightarrow=🔜 spanishflag=🇪🇸 speechbubble=💬 spurtingwhale=🐳 squaredup=🆙
    star=🌟 stormcloud=🌩 studiomic=🎙 sunraincloud=🌦 sunrays=☀ surfer=🏄 sweatsplash=💦 swimming=🏊
    telephonereceiver2=📞 ten=🔟 tennisball=🎾 thoughtbaloon=💭 thumbsdown=👎 thumbsup=👍 tie=👔 tiger=🐯
    tigerside=🐅 topwithupwardsarrow=🔝 tornado=🌪 toykotower=🗼 turban=👳 umbrella=🌂 up=👆
    uppointingsmallredtrisngle=🔼 videocasette=📼 waitress=💁 walking=🚶 waningbibbousmoon=🌖
    waningcrescentmoon=🌘 waxingcrescentmoon=🌒 waxinggibbousmoon=🌔 wave=🌊 waving=👋 weightlifter=🏋
    whiteexclaimationmark=❕ whitequestionmark=❔ whitesunsmallcloud=🌤 wiredkeyboard=⌨ womansshirt=👚
    zzz=💤 smallfrown=🙁 smallsmile=🙂 jeans=👖 grin=😀 grineyes=😁 grintears=😂 grinwide=😃 grinwideeyes=😄
    grinsweat=😅 grinsquint=😆 halo=😇 devilhorns=😈 winking=😉 smileeyes=😊 smiletongue=😋 relieved=😌
    hearteyes=😍 sunglasses=😎 smirk=😏 neutral=😐 expressionless=😑 unamused=😒 sweat=😓 pensive=😔
    confused=😕 confounded=😖 kiss=😗 kissing=😘 kisseyes=😙 kissclosedeyes=😚 tongueout=😛 tongueoutwink=😜
    tongueoutwink2=😝 disappointed=😞 worried=😟 angry=😠 pouting=😡 crying=😢 perservere=😣 triumph=😤
    dissapointedrelief=😥 frownmouth=😦 anguish=😧 fearful=😨 weary=😩 sleepy=😪 tired=😫 grimacing=😬
    loudlycrying=😭 openmouth=😮 hushed=😯 coldsweat=😰 screamfear=😱 astonished=😲 flushed=😳 sleeping=😴
    dizzyface=😵 nomouth=😶 medicalmask=😷
    """
)

# Drawings of something else than the emoji they stand for (a revolver for the water pistol, a program window
# for the window), or nothing that can be seen.
REJECTED = {
    "noto-v1": frozenset({"pistol"}),
    "emojione": frozenset({"pistol"}),
    "fxemoji": frozenset(
        {"astonished", "beating-heart", "bicyclist", "fog", "keyboard", "pistol", "tramcar", "window"}
    ),
}
