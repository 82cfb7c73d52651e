# The firmware guest: a 64 KiB BIOS image that is a whole guest by itself (qemu -bios FILE).
#
# It enters 32-bit flat protected mode right after the reset vector and stays there. It runs from the copy
# of the ROM that ends at 4 GiB, so it never depends on how the chipset maps the ROM below 1 MiB. Secondary
# processors are never woken. Everything is interrupt driven: an idle guest sleeps in HLT.
#
# Protocol on COM1, 115200 8n1 (one-letter commands, other bytes are ignored):
#   e  echo: "ok"                             c  "count=XXXXXXXX", PIT ticks (18.2 a second) since boot
#   t  print "tick XXXXXXXX" each 4th tick    T  stop that
#   n  ignore the power button                N  obey the power button (as at boot)
#   d  dirty memory all the time (1..32 MiB)  D  stop that
#   q  ACPI S5 power off                      r  reset (port 0xcf9)
#   p  panic (pvpanic-pci, else port 0x505)   k  hang with interrupts off
#   m  "sum=XXXXXXXX" over the pattern that was written once at boot
#   w  write tokens to the first IDE disk all the time (pc)    W  stop that, "token=XXXXXXXX", the last one
# t T n N d D w answer "ok", k does so just before it hangs; every line ends with CR LF.
#
# A token is a number in the first sector, one more each time. Before each the guest reads the last one back: that it
# finds another number there can only be the work of somebody else. Then it writes both, its own and the one it found,
# to the second sector, and hangs.
#
# Needs 32 MiB of RAM. Build: python -m hvcore.guests.build_firmware

        .intel_syntax noprefix
        .section .text
        .globl  image

# Memory map (physical = linear)
        .set    VARS,           0x00001000      # variables; EBP always holds this address
        .set    STACK_TOP,      0x00008000
        .set    PATTERN,        0x00010000      # 512 KiB, outside of what "d" writes to
        .set    PATTERN_END,    0x00090000
        .set    PATTERN_STEP,   64              # one word in each cache line
        .set    DIRTY_START,    0x00100000
        .set    DIRTY_END,      0x02000000
        .set    DIRTY_BURST,    512             # pages for each pass of the main loop
        .set    LAPIC,          0xfee00000
        .set    PANIC_BAR,      0xfea00000      # free on pc and q35: below the I/O APIC, above any RAM

# Variables, relative to EBP
        .set    TICKS,          0
        .set    SPOKEN,         4               # TICKS / 4 when the last "tick" line was due
        .set    DIRTY_NEXT,     8
        .set    PM_BASE,        12              # I/O port of the ACPI PM1 block, 0 = there is none
        .set    BUSY,           16              # there may be more to do at once
        .set    TALKING,        17
        .set    IGNORING,       18
        .set    DIRTYING,       19
        .set    STALLED,        20              # 1 = nobody takes our output
        .set    WRITING,        21
        .set    TOKEN,          24
        .set    VARS_SIZE,      28

        .set    COM1,           0x3f8
        .set    COM1_LSR,       0x3fd
        .set    LSR_DATA,       0x01
        .set    LSR_THRE,       0x20
        .set    SEND_SPINS,     50000
        .set    IDE_DATA,       0x1f0
        .set    IDE_STATUS,     0x1f7
        .set    IDE_BUSY,       0x80
        .set    IDE_DRQ,        0x08
        .set    IDE_ERROR,      0x21            # ERR or DF
        .set    IDE_READ,       0x20            # READ SECTORS, WRITE SECTORS
        .set    IDE_WRITE,      0x30
        .set    SECTOR_WORDS,   256
        .set    PM_PORT,        0x600           # where we put the PM1 block; free on both chipsets
        .set    PM1_BUTTON,     0x0100
        .set    PM1_SLEEP_S5,   0x2000
        .set    PCI_ENABLE,     0x80000000

image:
        .code16
enter:
        cli
        .att_syntax prefix
        lgdtl   %cs:(gdt_pointer - image)
        movl    %cr0, %eax
        andl    $0x9fffffff, %eax               # caches on
        orl     $1, %eax
        movl    %eax, %cr0
        ljmpl   $0x08, $flat
        .intel_syntax noprefix

        .code32
flat:
        mov     eax, 0x10
        mov     ds, eax
        mov     es, eax
        mov     ss, eax
        mov     fs, eax
        mov     gs, eax
        mov     esp, STACK_TOP
        mov     ebp, VARS
        lidt    [idt_pointer]

        # A reset keeps RAM, so the variables start from the previous run.
        mov     edi, ebp
        mov     ecx, VARS_SIZE / 4
        xor     eax, eax
1:      mov     [edi], eax
        add     edi, 4
        dec     ecx
        jnz     1b
        mov     dword ptr [ebp + DIRTY_NEXT], DIRTY_START

        call    set_up_ports
        call    set_up_power_button
        call    write_pattern
        # The PIC reaches the processor through LINT0 of the local APIC: ExtINT, not masked.
        mov     edi, LAPIC
        mov     dword ptr [edi + 0xf0], 0x12f   # APIC on, spurious vector 0x2f
        mov     dword ptr [edi + 0x350], 0x700
        mov     esi, offset text_ready
        call    put_text

# Interrupts are let in at two places only, and their handlers do not return: they begin the next pass. So
# no wake-up gets lost between the polls and HLT, and no IRET is needed (the instruction emulator of KVM,
# which has to run us on some hosts, has none for protected mode).
main:
        mov     esp, STACK_TOP
        mov     byte ptr [ebp + BUSY], 0
        call    poll_button
        call    poll_serial
        call    talk
        call    write_token
        cmp     byte ptr [ebp + DIRTYING], 0
        je      1f
        call    dirty_burst
        jmp     2f
1:      cmp     byte ptr [ebp + BUSY], 0
        jne     2f
        sti
        hlt
2:      sti
        nop
        nop
        cli
        jmp     main

# ---- set-up ------------------------------------------------------------------------------------------

set_up_ports:
        mov     esi, offset port_table
1:      mov     edx, [esi]
        movzx   edx, dx
        test    edx, edx
        jz      2f
        mov     al, [esi + 2]
        out     dx, al
        add     esi, 3
        jmp     1b
2:      ret

# Gives the PM1 block of PIIX4 (pc) or ICH9 (q35) a port and enables the power button event.
set_up_power_button:
        mov     ecx, PCI_ENABLE | 0x0b00        # 00:01.3
        call    pci_read
        cmp     eax, 0x71138086
        je      1f
        mov     ecx, PCI_ENABLE | 0xf800        # 00:1f.0
        call    pci_read
        cmp     eax, 0x29188086
        je      2f
        ret
1:      mov     ecx, PCI_ENABLE | 0x0b40
        mov     eax, PM_PORT | 1
        call    pci_write
        mov     ecx, PCI_ENABLE | 0x0b80
        call    pci_read
        or      eax, 1
        call    pci_write
        jmp     3f
2:      mov     ecx, PCI_ENABLE | 0xf840
        mov     eax, PM_PORT | 1
        call    pci_write
        mov     ecx, PCI_ENABLE | 0xf844
        mov     eax, 0x80                       # enabled, SCI is IRQ 9
        call    pci_write
3:      mov     dword ptr [ebp + PM_BASE], PM_PORT
        mov     eax, PM1_BUTTON
        mov     edx, PM_PORT                    # status: clear an old press
        out     dx, ax
        mov     edx, PM_PORT + 2                # enable
        out     dx, ax
        mov     eax, 1
        mov     edx, PM_PORT + 4                # control: ACPI owns the events
        out     dx, ax
        ret

write_pattern:
        mov     edi, PATTERN
        mov     eax, 0x48564731
1:      mov     [edi], eax
        rol     eax, 5
        add     eax, 0x9e3779b9
        add     edi, PATTERN_STEP
        cmp     edi, PATTERN_END
        jb      1b
        ret

# ---- work of the main loop -----------------------------------------------------------------------------

poll_button:
        mov     edx, [ebp + PM_BASE]
        test    edx, edx
        jz      1f
        in      ax, dx
        test    eax, PM1_BUTTON
        jz      1f
        mov     eax, PM1_BUTTON
        out     dx, ax
        mov     esi, offset text_ignored
        cmp     byte ptr [ebp + IGNORING], 0
        jne     put_text
        mov     esi, offset text_button
        call    put_text
        jmp     do_power_off
1:      ret

poll_serial:
        mov     edx, COM1_LSR
        in      al, dx
        cmp     al, 0xff                        # no UART: the bus floats, it is not data
        je      9f
        test    al, LSR_DATA
        jz      9f
        mov     edx, COM1
        in      al, dx
        mov     byte ptr [ebp + BUSY], 1
        mov     esi, offset command_table
1:      cmp     byte ptr [esi], 0
        je      9f
        cmp     al, [esi]
        je      2f
        add     esi, 8
        jmp     1b
2:      mov     eax, [esi + 4]
        jmp     eax
9:      ret

talk:
        cmp     byte ptr [ebp + TALKING], 0
        je      1f
        mov     eax, [ebp + TICKS]
        mov     ebx, eax
        shr     ebx, 2
        cmp     ebx, [ebp + SPOKEN]
        je      1f
        mov     [ebp + SPOKEN], ebx
        mov     esi, offset text_tick
        jmp     put_value
1:      ret

write_token:
        cmp     byte ptr [ebp + WRITING], 0
        je      1f
        mov     byte ptr [ebp + BUSY], 1
        call    read_token
        cmp     ebx, [ebp + TOKEN]
        jne     2f
        inc     ebx
        mov     [ebp + TOKEN], ebx
        xor     esi, esi
        jmp     write_sector
1:      ret
2:      mov     esi, ebx
        mov     ebx, [ebp + TOKEN]
        mov     edi, 1
        call    write_sector_number
        mov     esi, offset text_other
        call    put_text
        jmp     do_hang

dirty_burst:
        mov     edi, [ebp + DIRTY_NEXT]
        mov     ecx, DIRTY_BURST
1:      inc     dword ptr [edi]
        add     edi, 0x1000
        cmp     edi, DIRTY_END
        jb      2f
        mov     edi, DIRTY_START
2:      dec     ecx
        jnz     1b
        mov     [ebp + DIRTY_NEXT], edi
        ret

# ---- commands ------------------------------------------------------------------------------------------

do_talk:
        mov     eax, [ebp + TICKS]
        shr     eax, 2
        mov     [ebp + SPOKEN], eax
        mov     byte ptr [ebp + TALKING], 1
        jmp     say_ok
do_be_quiet:
        mov     byte ptr [ebp + TALKING], 0
        jmp     say_ok
do_ignore:
        mov     byte ptr [ebp + IGNORING], 1
        jmp     say_ok
do_obey:
        mov     byte ptr [ebp + IGNORING], 0
        jmp     say_ok
do_dirty:
        mov     byte ptr [ebp + DIRTYING], 1
        jmp     say_ok
do_rest:
        mov     byte ptr [ebp + DIRTYING], 0
say_ok:
        mov     esi, offset text_ok
        jmp     put_text

# It goes on from the token that is there.
do_write:
        call    read_token
        mov     [ebp + TOKEN], ebx
        mov     byte ptr [ebp + WRITING], 1
        jmp     say_ok
do_not_write:
        mov     byte ptr [ebp + WRITING], 0
        mov     eax, [ebp + TOKEN]
        mov     esi, offset text_token
        jmp     put_value

do_count:
        mov     eax, [ebp + TICKS]
        mov     esi, offset text_count
        jmp     put_value

# The sum is rotated for each word so that pages which changed places are noticed too.
do_sum:
        xor     eax, eax
        mov     edi, PATTERN
1:      rol     eax, 1
        add     eax, [edi]
        add     edi, PATTERN_STEP
        cmp     edi, PATTERN_END
        jb      1b
        mov     esi, offset text_sum
        jmp     put_value

do_power_off:
        mov     edx, [ebp + PM_BASE]
        test    edx, edx
        jz      1f
        add     edx, 4
        mov     eax, PM1_SLEEP_S5
        out     dx, ax
        jmp     do_hang
1:      ret

# The answer tells when the hang has begun: interrupts are off already.
do_hang_politely:
        call    say_ok
        jmp     do_hang

do_reset:
        mov     edx, 0xcf9
        mov     al, 0x06
        out     dx, al
do_hang:
        cli
        hlt
        jmp     do_hang

# Each function of bus 0 is asked, each time: the device may have been plugged in since boot.
do_panic:
        mov     ecx, PCI_ENABLE
1:      call    pci_read
        cmp     eax, 0x00111b36
        je      2f
        add     ecx, 0x100
        cmp     ecx, PCI_ENABLE | 0x10000
        jb      1b
        mov     edx, 0x505
        mov     al, 1
        out     dx, al
        ret
2:      add     ecx, 0x10                       # BAR0
        mov     eax, PANIC_BAR
        call    pci_write
        sub     ecx, 0x0c                       # command register: memory decoding
        call    pci_read
        and     eax, 0xffff                     # status bits are cleared by writing ones
        or      eax, 2
        call    pci_write
        mov     edi, PANIC_BAR
        mov     byte ptr [edi], 1
        ret

# ---- IDE, by programmed input and output ---------------------------------------------------------------------

# EBX = the first four bytes of the first sector.
read_token:
        xor     edi, edi
        mov     bl, IDE_READ
        call    ide_command
        call    in_word
        mov     ebx, eax
        call    in_word
        shl     eax, 16
        or      ebx, eax
        mov     ecx, SECTOR_WORDS - 2
1:      call    in_word
        dec     ecx
        jnz     1b
        ret

# EBX, ESI = what the first sector is to begin with, or the sector EDI.
write_sector:
        xor     edi, edi
write_sector_number:
        push    ebx
        mov     bl, IDE_WRITE
        call    ide_command
        pop     eax
        call    out_long
        mov     eax, esi
        call    out_long
        mov     ecx, SECTOR_WORDS - 4
        xor     eax, eax
1:      out     dx, ax
        dec     ecx
        jnz     1b
        jmp     ide_wait

# EDI = sector, BL = command: returns with EDX = the data port, when it is time for the data.
ide_command:
        mov     edx, 0x3f6
        mov     al, 0x02                        # no interrupts
        out     dx, al
        call    ide_wait
        mov     edx, 0x1f6
        mov     al, 0xe0                        # LBA, master
        out     dx, al
        mov     edx, 0x1f2
        mov     al, 1
        out     dx, al
        inc     edx
        mov     eax, edi
        out     dx, al
        inc     edx
        xor     eax, eax
        out     dx, al
        inc     edx
        out     dx, al
        mov     edx, IDE_STATUS
        mov     al, bl
        out     dx, al
1:      in      al, dx
        test    al, IDE_BUSY
        jnz     1b
        test    al, IDE_ERROR
        jnz     ide_fault
        test    al, IDE_DRQ
        jz      1b
        mov     edx, IDE_DATA
        ret

ide_wait:
        mov     edx, IDE_STATUS
1:      in      al, dx
        test    al, IDE_BUSY
        jnz     1b
        test    al, IDE_ERROR
        jnz     ide_fault
        ret

ide_fault:
        mov     esi, offset text_disk
        call    put_text
        jmp     do_hang

in_word:
        xor     eax, eax
        in      ax, dx
        ret

out_long:
        out     dx, ax
        shr     eax, 16
        out     dx, ax
        ret

# ---- PCI configuration: ECX = address; EAX = value -------------------------------------------------------

pci_read:
        mov     edx, 0xcf8
        mov     eax, ecx
        out     dx, eax
        mov     edx, 0xcfc
        in      eax, dx
        ret

pci_write:
        push    eax
        mov     edx, 0xcf8
        mov     eax, ecx
        out     dx, eax
        pop     eax
        mov     edx, 0xcfc
        out     dx, eax
        ret

# ---- output --------------------------------------------------------------------------------------------

# ESI = label, EAX = value: prints both and a line end.
put_value:
        push    eax
        call    put_text
        pop     ebx
        mov     edi, 8
1:      rol     ebx, 4
        mov     eax, ebx
        and     eax, 15
        mov     al, [eax + hex_digits]
        call    put_byte
        dec     edi
        jnz     1b
        mov     esi, offset text_line_end

put_text:
        mov     al, [esi]
        test    al, al
        jz      1f
        call    put_byte
        inc     esi
        jmp     put_text
1:      ret

# AL = byte. When nobody takes our output it is dropped after one bounded wait: the guest must go on
# answering its power button.
put_byte:
        mov     ah, al
        mov     edx, COM1_LSR
        mov     ecx, SEND_SPINS
1:      in      al, dx
        test    al, LSR_THRE
        jnz     2f
        cmp     byte ptr [ebp + STALLED], 0
        jne     3f
        dec     ecx
        jnz     1b
        mov     byte ptr [ebp + STALLED], 1
3:      ret
2:      mov     byte ptr [ebp + STALLED], 0
        mov     al, ah
        mov     edx, COM1
        out     dx, al
        ret

# ---- interrupts ----------------------------------------------------------------------------------------

on_tick:
        inc     dword ptr [ebp + TICKS]
        jmp     on_master
on_slave:
        mov     al, 0x20
        out     0xa0, al
on_master:
        mov     al, 0x20
        out     0x20, al
        jmp     main

on_fault:
        mov     esi, offset text_fault
        call    put_text
        jmp     do_hang

# ---- tables --------------------------------------------------------------------------------------------

        .balign 8
gdt:    .quad   0
        .quad   0x00cf9b000000ffff              # 0x08 code, 0..4 GiB; "accessed" is set: this is ROM
        .quad   0x00cf93000000ffff              # 0x10 data, 0..4 GiB
gdt_pointer:
        .word   gdt_pointer - gdt - 1
        .long   gdt

        .macro  gate target
        .word   \target - image                 # the image is linked at 0xffff0000
        .word   0x08
        .word   0x8e00
        .word   0xffff
        .endm

        .balign 8
idt:    .rept   32
        gate    on_fault
        .endr
        gate    on_tick                         # 0x20: IRQ 0, PIT
        .rept   3
        gate    on_master
        .endr
        gate    on_master                       # 0x24: IRQ 4, COM1
        .rept   2
        gate    on_master
        .endr
        gate    main                            # 0x27: IRQ 7 is masked, so this is no interrupt at all
        gate    on_slave
        gate    on_slave                        # 0x29: IRQ 9, SCI
        .rept   5
        gate    on_slave
        .endr
        gate    main                            # 0x2f: spurious interrupt of the local APIC
idt_pointer:
        .word   idt_pointer - idt - 1
        .long   idt

        .macro  port number, value
        .word   \number
        .byte   \value
        .endm

port_table:
        port    0x20, 0x11                      # PICs: vectors 0x20 and 0x28, cascade on IRQ 2
        port    0xa0, 0x11
        port    0x21, 0x20
        port    0xa1, 0x28
        port    0x21, 0x04
        port    0xa1, 0x02
        port    0x21, 0x01
        port    0xa1, 0x01
        port    0x21, 0xea                      # open: 0 (PIT), 2 (cascade), 4 (COM1)
        port    0xa1, 0xfd                      # open: 9 (SCI)
        port    0x43, 0x34                      # PIT: channel 0, rate generator, divisor 65536
        port    0x40, 0x00
        port    0x40, 0x00
        port    0x3fb, 0x80                     # COM1: 115200 8n1
        port    0x3f8, 0x01
        port    0x3f9, 0x00
        port    0x3fb, 0x03
        port    0x3fa, 0x07                     # FIFOs on and empty, interrupt at the first byte
        port    0x3fc, 0x0b                     # DTR, RTS, interrupt line
        port    0x3f9, 0x01                     # interrupt on received data
        .word   0, 0

        .macro  command letter, handler
        .long   \letter
        .long   \handler
        .endm

        .balign 8
command_table:
        command 'e', say_ok
        command 'c', do_count
        command 't', do_talk
        command 'T', do_be_quiet
        command 'q', do_power_off
        command 'r', do_reset
        command 'n', do_ignore
        command 'N', do_obey
        command 'p', do_panic
        command 'd', do_dirty
        command 'D', do_rest
        command 'k', do_hang_politely
        command 'm', do_sum
        command 'w', do_write
        command 'W', do_not_write
        command 0, 0

hex_digits:     .ascii  "0123456789ABCDEF"
text_ready:     .asciz  "HVCORE-GUEST ready firmware\r\n"
text_button:    .asciz  "HVCORE-GUEST power button\r\n"
text_ignored:   .asciz  "HVCORE-GUEST ignored power button\r\n"
text_fault:     .asciz  "HVCORE-GUEST fault\r\n"
text_other:     .asciz  "HVCORE-GUEST somebody else has written\r\n"
text_disk:      .asciz  "HVCORE-GUEST disk error\r\n"
text_token:     .asciz  "token="
text_ok:        .asciz  "ok\r\n"
text_count:     .asciz  "count="
text_sum:       .asciz  "sum="
text_tick:      .asciz  "tick "
text_line_end:  .asciz  "\r\n"

        .org    0xfff0
        .code16
        jmp     enter
        .org    0x10000
